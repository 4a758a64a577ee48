//! Wrong arguments: typed errors before anything is enqueued. And statistics of nothing.

use crate::harness::*;
use syncbn_core::kernels::{BackwardApply, BackwardReduce, Elemt, Kernels, Normalize};
use syncbn_core::{Code, DType, Result};

/// Everything a call of batch norm needs, in float32, (2, 3, 5).
struct Setup {
    gpu: Gpu,
    case: Case,
    x: Tensor,
    output: Tensor,
    short: Tensor,
    half: Tensor,
    integers: Tensor,
}

impl Setup {
    fn new() -> Self {
        let gpu = Gpu::new();
        let case = Case::random(2, shape(2, 3, 5, false), DType::F32);
        Self {
            x: case.tensor(&gpu, &case.x),
            output: Tensor::unwritten(&gpu, DType::F32, 30, 0),
            short: Tensor::new(&gpu, DType::F32, &[1.0; 2], 0),
            half: Tensor::new(&gpu, DType::F16, &[1.0; 30], 0),
            integers: Tensor::new(&gpu, DType::I32, &[1.0; 30], 0),
            gpu,
            case,
        }
    }

    /// `call` fails with `code` and `message` and launches nothing.
    fn refused(&self, code: Code, message: &str, call: Result<()>, launches: u64) {
        let error = call.unwrap_err();
        assert_eq!(error.code(), code, "{error}");
        assert!(error.message().contains(message), "{error}");
        assert_eq!(self.gpu.cuda.counts().launches, launches, "{message}");
    }
}

#[test]
fn normalize_refuses_what_does_not_fit() {
    let mut setup = Setup::new();
    let bytes = setup.case.slot_bytes();
    let (messages, two) = (setup.gpu.buffer(bytes), setup.gpu.buffer(2 * bytes));
    let mut output = Tensor::unwritten(&setup.gpu, DType::F32, 30, 0);
    let mut wrong = Tensor::unwritten(&setup.gpu, DType::F16, 30, 0);
    let launches = setup.gpu.cuda.counts().launches;
    let mut running = Running::new(&setup.gpu, DType::F32, 3, 0);
    let mut without = Running { tracked: None, ..Running::new(&setup.gpu, DType::F32, 3, 0) };
    let mut halves = Running::new(&setup.gpu, DType::F16, 3, 0);
    let mut short = Running::new(&setup.gpu, DType::F32, 2, 0);
    let mut kept = setup.gpu.buffer(bytes);
    macro_rules! refused {
        ($code:ident, $message:literal, { $($field:ident: $value:expr),* }) => {{
            #[allow(unused_mut)]
            let mut call = Normalize {
                input: setup.x.view(),
                shape: setup.case.shape,
                weight: None,
                bias: None,
                eps: 1e-5,
                messages: &messages,
                world_size: 1,
                running: None,
                output: output.view_mut(),
                statistics: &mut kept,
            };
            $(call.$field = $value;)*
            let result = setup.gpu.cuda.normalize(call);
            setup.refused(Code::$code, $message, result, launches);
        }};
    }
    refused!(DType, "input of a floating-point type", { input: setup.integers.view() });
    refused!(Shape, "input of 30 elements, got 2", { input: setup.short.view() });
    refused!(DType, "output of float32, got float16", { output: wrong.view_mut() });
    refused!(Shape, "output of 30 elements, got 2", { output: setup.short.view_mut() });
    refused!(DType, "weight of float32, got float16", { weight: Some(setup.half.view()) });
    refused!(Shape, "weight of 3 elements, got 2", { weight: Some(setup.short.view()) });
    refused!(Shape, "bias of 3 elements, got 2", { bias: Some(setup.short.view()) });
    refused!(Argument, "statistics of 56 bytes, got 112", { messages: &two });
    refused!(Argument, "statistics of 112 bytes, got 56", { world_size: 2 });
    refused!(Argument, "a world size of 1", { world_size: 0 });
    refused!(Argument, "num_batches_tracked with a momentum of none", { running: Some(without.views(None)) });
    refused!(DType, "running_mean of float32 or float64, got float16", { running: Some(halves.views(None)) });
    refused!(Shape, "running_mean of 3 elements, got 2", { running: Some(short.views(Some(0.1))) });
    let mut counter = Tensor::new(&setup.gpu, DType::I32, &[0.0], 0);
    let mut views = running.views(Some(0.1));
    views.num_batches_tracked = Some(counter.view_mut());
    refused!(DType, "num_batches_tracked of int64, got int32", { running: Some(views) });
    assert!(setup.output.read(&setup.gpu).iter().all(|y| y.is_nan()));
}

#[test]
fn the_others_refuse_what_does_not_fit() {
    let setup = Setup::new();
    let (cuda, shape, bytes) = (&setup.gpu.cuda, setup.case.shape, setup.case.slot_bytes());
    let kept = setup.gpu.buffer(bytes);
    let mut dx = Tensor::unwritten(&setup.gpu, DType::F32, 30, 0);
    let (mut sums, mut odd) = (setup.gpu.buffer(48), setup.gpu.buffer(44));
    let mut integers = Tensor::new(&setup.gpu, DType::I32, &[1.0; 3], 0);
    let launches = cuda.counts().launches;
    let refused = |code, message: &str, call| setup.refused(code, message, call, launches);

    refused(
        Code::Argument,
        "messages of whole slots of 56 bytes, 2 at least",
        cuda.stats(setup.x.view(), shape, &mut setup.gpu.buffer(bytes), 1),
    );
    refused(Code::Argument, "messages of whole slots", cuda.stats(setup.x.view(), shape, &mut odd, 0));
    refused(
        Code::Shape,
        "input of 30 elements",
        cuda.stats(setup.short.view(), shape, &mut setup.gpu.buffer(bytes), 0),
    );

    let mut elemt = |input, statistics| {
        cuda.elemt(Elemt { input, shape, weight: None, bias: None, statistics, output: dx.view_mut() })
    };
    refused(Code::Argument, "statistics of 56 bytes, got 44", elemt(setup.x.view(), &odd));
    refused(Code::DType, "output of float16, got float32", elemt(setup.half.view(), &kept));

    let mut apply = |grad_output, sums| {
        cuda.backward_apply(BackwardApply {
            input: setup.x.view(),
            grad_output,
            shape,
            weight: None,
            statistics: &kept,
            sums,
            grad_input: dx.view_mut(),
        })
    };
    refused(Code::DType, "grad_output of float32, got float16", apply(setup.half.view(), None));
    refused(Code::Argument, "sums of 48 bytes, got 44", apply(setup.x.view(), Some(&odd)));

    let reduce = |sums, grad_weight| {
        cuda.backward_reduce(BackwardReduce {
            input: setup.x.view(),
            grad_output: setup.x.view(),
            shape,
            statistics: &kept,
            sums,
            grad_weight,
            grad_bias: None,
        })
    };
    refused(
        Code::DType,
        "grad_weight of a floating-point type, got int32",
        reduce(&mut sums, Some(integers.view_mut())),
    );
    refused(Code::Argument, "sums of 48 bytes, got 44", reduce(&mut odd, None));

    let constant = |mean: &Tensor, var: &Tensor, statistics: &mut _| {
        cuda.constant_statistics(mean.view(), var.view(), 1e-5, statistics)
    };
    refused(Code::Shape, "running_var of 30 elements, got 2", constant(&setup.x, &setup.short, &mut sums));
    refused(Code::DType, "running_mean of a floating-point type", constant(&setup.integers, &setup.x, &mut sums));
    refused(Code::Argument, "statistics of 40 bytes, got 44", constant(&setup.short, &setup.short, &mut odd));
    assert!(dx.read(&setup.gpu).iter().all(|dx| dx.is_nan()));
}

#[test]
fn no_count_gives_no_gradient() {
    let gpu = Gpu::new();
    let case = Case::random(2, shape(1, 1, 3, false), DType::F32);
    let (slot, sums) = (gpu.upload(&[0; 24]), gpu.upload(&[0; 16]));
    let x = case.tensor(&gpu, &case.x);
    let mut dx = Tensor::unwritten(&gpu, DType::F32, 3, 0);
    gpu.cuda
        .backward_apply(BackwardApply {
            input: x.view(),
            grad_output: x.view(),
            shape: case.shape,
            weight: None,
            statistics: &slot,
            sums: Some(&sums),
            grad_input: dx.view_mut(),
        })
        .unwrap();
    assert!(dx.read(&gpu).iter().all(|&dx| dx == 0.0));
}
