//! The Node.js addon: free functions and opaque handles for the TypeScript layer in src/.
//!
//! Every function converts its arguments, makes one call of `syncbn_runtime` and converts the result; no rule of batch
//! norm or of collectives lives here. Errors cross as data (see [`error`]); a panic becomes an error, too.
#![allow(missing_docs, reason = "docs/api and src/*.ts document the surface; these names are private to the package")]

mod arithmetic;
mod array;
mod batch_norm;
mod batch_norm_array;
mod convert;
mod cuda;
mod data;
mod error;
mod memory;
mod network;
mod optimizer;
mod process_group;
mod reducer;
mod split;
mod tensor;
mod timing;
