//! The one error type of the library.
//!
//! An [`Error`] is a [`Code`] that never changes meaning, a sentence that says what was expected and what came, and,
//! for distributed errors, who was involved. docs/errors.md lists every code; a test keeps the two equal.

use std::fmt;

/// `Result` with this library's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The class of an error: one TypeScript error class each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// A tensor has the wrong number of dimensions or sizes.
    Shape,
    /// A tensor has the wrong element type.
    DType,
    /// A tensor lives on, or a call names, the wrong device.
    Device,
    /// Any other argument is wrong.
    Argument,
    /// The gradient graph cannot do what was asked.
    Autograd,
    /// Process groups: set-up, membership, I/O.
    Distributed,
    /// A deadline passed while ranks were missing.
    Timeout,
    /// A rank's process or connection ended.
    PeerLost,
    /// Ranks made different calls.
    Mismatch,
    /// Memory ran out.
    OutOfMemory,
    /// A defect of the library itself.
    Internal,
}

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $text:literal => $kind:ident,)*) => {
        /// The closed list of error codes.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Code { $($(#[$doc])* $name,)* }

        impl Code {
            /// Every code, in the order of docs/errors.md.
            pub const ALL: &'static [Code] = &[$(Code::$name,)*];

            /// The stable string, `ERR_…`.
            pub const fn as_str(self) -> &'static str {
                match self { $(Code::$name => $text,)* }
            }

            /// The class of errors this code belongs to.
            pub const fn kind(self) -> ErrorKind {
                match self { $(Code::$name => ErrorKind::$kind,)* }
            }
        }
    };
}

codes! {
    /// A shape differs from what the operation needs.
    Shape = "ERR_SHAPE" => Shape,
    /// Training batch norm over a single value per channel, counted over all ranks.
    TooFewValues = "ERR_TOO_FEW_VALUES" => Shape,
    /// An element type differs from what the operation needs.
    DType = "ERR_DTYPE" => DType,
    /// A device is wrong, unknown or not the one the other operands live on.
    Device = "ERR_DEVICE" => Device,
    /// The asked-for backend is not available on this machine or in this build.
    BackendUnavailable = "ERR_BACKEND_UNAVAILABLE" => Device,
    /// A call of the CUDA driver failed.
    Cuda = "ERR_CUDA" => Device,
    /// Something that waits for the GPU, or moves data to or from the host, inside a capture.
    Capture = "ERR_CAPTURE" => Device,
    /// An argument is out of range or inconsistent with another.
    Argument = "ERR_ARGUMENT" => Argument,
    /// A tensor or handle was used after it was disposed.
    Disposed = "ERR_DISPOSED" => Argument,
    /// Memory is being written by an operation that has not finished.
    InUse = "ERR_IN_USE" => Argument,
    /// A file cannot be read, written or understood.
    File = "ERR_FILE" => Argument,
    /// A state dict lacks keys or has too many.
    StateDict = "ERR_STATE_DICT" => Argument,
    /// A module cannot be converted without losing behaviour.
    Convert = "ERR_CONVERT" => Argument,
    /// `backward` or `grad` on something that has no gradient graph.
    NoGraph = "ERR_NO_GRAPH" => Autograd,
    /// The graph's saved tensors were freed by an earlier `backward`.
    GraphFreed = "ERR_GRAPH_FREED" => Autograd,
    /// A tensor saved for backward was changed in place since.
    SavedTensorModified = "ERR_SAVED_TENSOR_MODIFIED" => Autograd,
    /// The operation has no derivative of the asked-for order.
    NotDifferentiable = "ERR_NOT_DIFFERENTIABLE" => Autograd,
    /// An in-place write to a tensor that autograd tracks.
    InPlace = "ERR_IN_PLACE" => Autograd,
    /// Gradients of some parameters were not made by this backward.
    UnusedParameters = "ERR_UNUSED_PARAMETERS" => Autograd,
    /// A call needs a process group and there is none.
    NotInitialized = "ERR_NOT_INITIALIZED" => Distributed,
    /// The default process group exists already.
    AlreadyInitialized = "ERR_ALREADY_INITIALIZED" => Distributed,
    /// This rank is not a member of the group.
    NotInGroup = "ERR_NOT_IN_GROUP" => Distributed,
    /// An environment variable is missing or malformed.
    Environment = "ERR_ENVIRONMENT" => Distributed,
    /// Ranks on other machines need a shared token.
    TokenRequired = "ERR_TOKEN_REQUIRED" => Distributed,
    /// The peer could not prove that it knows the token.
    TokenRejected = "ERR_TOKEN_REJECTED" => Distributed,
    /// The rendezvous port is taken.
    AddressInUse = "ERR_ADDRESS_IN_USE" => Distributed,
    /// The ranks could not meet: a bad address, a duplicate rank, another world size.
    Rendezvous = "ERR_RENDEZVOUS" => Distributed,
    /// An earlier error made the group unusable; it must be rebuilt.
    GroupPoisoned = "ERR_GROUP_POISONED" => Distributed,
    /// The group was destroyed or the wait was aborted.
    Aborted = "ERR_ABORTED" => Distributed,
    /// A socket or file of the process group failed.
    Io = "ERR_IO" => Distributed,
    /// A call of NCCL failed.
    Nccl = "ERR_NCCL" => Distributed,
    /// A deadline passed; the message names the ranks that are missing.
    Timeout = "ERR_TIMEOUT" => Timeout,
    /// A rank's process or connection ended.
    PeerLost = "ERR_PEER_LOST" => PeerLost,
    /// Ranks called different collectives, or the same with other sizes or dtypes.
    Mismatch = "ERR_MISMATCH" => Mismatch,
    /// Ranks built their module from different parameters.
    ParameterMismatch = "ERR_PARAMETER_MISMATCH" => Mismatch,
    /// The device has no memory left.
    OutOfMemory = "ERR_OUT_OF_MEMORY" => OutOfMemory,
    /// A defect of the library; please report it.
    Internal = "ERR_INTERNAL" => Internal,
}

/// An error of the library: see the [module documentation](self).
#[derive(Clone)]
pub struct Error(Box<Details>);

#[derive(Clone, Debug)]
struct Details {
    code: Code,
    message: String,
    group: Option<String>,
    rank: Option<usize>,
    peer: Option<usize>,
    operation: Option<String>,
}

impl Error {
    /// An error with this code and sentence.
    #[cold]
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self(Box::new(Details { code, message: message.into(), group: None, rank: None, peer: None, operation: None }))
    }

    /// `op: expected …, got …`, the form of every error about arguments.
    #[cold]
    pub fn expected(code: Code, op: &str, expected: impl fmt::Display, got: impl fmt::Display) -> Self {
        Self::new(code, format!("{op}: expected {expected}, got {got}"))
    }

    /// A broken promise of the library to itself.
    #[cold]
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(Code::Internal, message)
    }

    /// Names the process group.
    #[must_use]
    pub fn with_group(mut self, group: impl Into<String>) -> Self {
        self.0.group = Some(group.into());
        self
    }

    /// Names the rank that reports.
    #[must_use]
    pub fn with_rank(mut self, rank: usize) -> Self {
        self.0.rank = Some(rank);
        self
    }

    /// Names the rank the error is about.
    #[must_use]
    pub fn with_peer(mut self, peer: usize) -> Self {
        self.0.peer = Some(peer);
        self
    }

    /// Names the collective or call.
    #[must_use]
    pub fn with_operation(mut self, operation: impl Into<String>) -> Self {
        self.0.operation = Some(operation.into());
        self
    }

    /// The code.
    pub fn code(&self) -> Code {
        self.0.code
    }

    /// The class of errors the code belongs to.
    pub fn kind(&self) -> ErrorKind {
        self.0.code.kind()
    }

    /// The sentence.
    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// The process group, for distributed errors.
    pub fn group(&self) -> Option<&str> {
        self.0.group.as_deref()
    }

    /// The rank that reports, for distributed errors.
    pub fn rank(&self) -> Option<usize> {
        self.0.rank
    }

    /// The rank the error is about, for distributed errors.
    pub fn peer(&self) -> Option<usize> {
        self.0.peer
    }

    /// The collective or call, for distributed errors.
    pub fn operation(&self) -> Option<&str> {
        self.0.operation.as_deref()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.message)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.0.code.as_str(), self.0.message)
    }
}

impl std::error::Error for Error {}
