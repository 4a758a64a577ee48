//! The seam carries a device whose work runs later: the orchestration of `sync_batch_norm`, unchanged, over an
//! asynchronous test device and an asynchronous exchange, against the float64 reference.
//!
//! Nothing runs before every call has returned, so no call can have waited for a result. That, and how much work is
//! enqueued, is what a GPU needs of the seam.

mod asynchronous;

use asynchronous::{Device, Enqueued, Meeting, Member, Memory};
use std::sync::Arc;
use std::thread;
use syncbn_core::generator::Generator;
use syncbn_core::kernels::{Backward, Elemt, Forward, Kernels, RunningStats};
use syncbn_core::message::slot_bytes;
use syncbn_core::reference::{self, RankBatch};
use syncbn_core::sync_batch_norm::{self, DoubleBackward, Group};
use syncbn_core::{BatchNormShape, Code, Collective, DType, Result, running_stats};

const EPS: f64 = 1e-3;
const MOMENTUM: f64 = 0.3;
const CHANNELS: usize = 3;

/// What an error of the statistics type's rounding may be, in units of the result.
fn tolerance(statistics: DType) -> f64 {
    if statistics == DType::F32 { 2e-5 } else { 1e-11 }
}

/// All ranks' numbers.
struct Problem {
    shapes: Vec<BatchNormShape>,
    x: Vec<Vec<f64>>,
    dy: Vec<Vec<f64>>,
    /// What arrives at dx, at the weight's and at the bias' gradient, by rank.
    g: Vec<Vec<f64>>,
    ggw: Vec<Vec<f64>>,
    ggb: Vec<Vec<f64>>,
    weight: Vec<f64>,
    bias: Vec<f64>,
}

impl Problem {
    /// Ranks with batches of these sizes, of different spatial sizes and in both layouts.
    fn new(batches: &[usize]) -> Self {
        let shape = |(rank, &batch): (usize, &usize)| BatchNormShape {
            batch,
            channels: CHANNELS,
            spatial: 2 * rank + 5,
            channels_last: rank % 2 == 1,
        };
        let shapes: Vec<BatchNormShape> = batches.iter().enumerate().map(shape).collect();
        let mut random = Generator::new(batches.iter().sum::<usize>() as u64);
        let mut tensors = || shapes.iter().map(|shape| random.randn_f64(shape.numel())).collect::<Vec<_>>();
        let (x, dy, g) = (tensors(), tensors(), tensors());
        let mut rows = || batches.iter().map(|_| random.randn_f64(CHANNELS)).collect::<Vec<_>>();
        let (ggw, ggb, mut affine) = (rows(), rows(), rows());
        let weight = affine.swap_remove(0);
        Self { shapes, x, dy, g, ggw, ggb, weight, bias: vec![0.5, -1.0, 2.0] }
    }

    fn ranks(&self) -> usize {
        self.shapes.len()
    }

    fn batches(&self) -> Vec<RankBatch<'_>> {
        self.x.iter().zip(&self.shapes).map(|(input, &shape)| RankBatch { input, shape }).collect()
    }

    fn forward(&self) -> reference::ReferenceForward {
        reference::forward(&self.batches(), Some(&self.weight), Some(&self.bias), EPS)
    }

    fn backward(&self) -> reference::ReferenceBackward {
        let dy: Vec<&[f64]> = self.dy.iter().map(Vec::as_slice).collect();
        reference::backward(&self.batches(), &dy, Some(&self.weight), &self.forward())
    }

    /// Σ G·dx + Σ ggw·grad_weight + Σ ggb·grad_bias over all ranks, whose slopes double backward computes.
    fn loss_of_gradients(&self) -> f64 {
        let gradients = self.backward();
        let dot =
            |a: &[Vec<f64>], b: &[Vec<f64>]| -> f64 { a.concat().iter().zip(b.concat()).map(|(a, b)| a * b).sum() };
        dot(&self.g, &gradients.grad_inputs)
            + dot(&self.ggw, &gradients.grad_weights)
            + dot(&self.ggb, &gradients.grad_biases)
    }

    /// The slope of [`Self::loss_of_gradients`] along the number `place` finds.
    fn slope(&mut self, place: impl Fn(&mut Self) -> &mut f64) -> f64 {
        const STEP: f64 = 1e-5;
        let at = *place(self);
        *place(self) = at + STEP;
        let above = self.loss_of_gradients();
        *place(self) = at - STEP;
        let below = self.loss_of_gradients();
        *place(self) = at;
        (above - below) / (2.0 * STEP)
    }
}

/// One rank's memory on its device.
struct Tensors {
    x: Memory,
    dy: Memory,
    g: Memory,
    ggw: Memory,
    ggb: Memory,
    weight: Memory,
    bias: Memory,
    running_mean: Memory,
    running_var: Memory,
    tracked: Memory,
    y: Memory,
    dx: Memory,
    grad_weight: Memory,
    grad_bias: Memory,
    to_x: Memory,
    to_dy: Memory,
    to_w: Memory,
    statistics: Memory,
}

impl Tensors {
    fn new(device: &Device, problem: &Problem, rank: usize) -> Self {
        let (like_x, like_row) = (vec![f64::NAN; problem.x[rank].len()], vec![f64::NAN; CHANNELS]);
        let statistics = device.new_buffer(slot_bytes(CHANNELS, device.statistics_dtype(DType::F64))).unwrap();
        Self {
            x: Memory::of(&problem.x[rank]),
            dy: Memory::of(&problem.dy[rank]),
            g: Memory::of(&problem.g[rank]),
            ggw: Memory::of(&problem.ggw[rank]),
            ggb: Memory::of(&problem.ggb[rank]),
            weight: Memory::of(&problem.weight),
            bias: Memory::of(&problem.bias),
            running_mean: Memory::of(&[0.0; CHANNELS]),
            running_var: Memory::of(&[1.0; CHANNELS]),
            tracked: Memory::of(&[0.0]),
            y: Memory::of(&like_x),
            dx: Memory::of(&like_x),
            grad_weight: Memory::of(&like_row),
            grad_bias: Memory::of(&like_row),
            to_x: Memory::of(&like_x),
            to_dy: Memory::of(&like_x),
            to_w: Memory::of(&like_row),
            statistics,
        }
    }

    fn forward(&mut self, device: &Device, shape: BatchNormShape, group: Group<'_, Device>) -> Result<()> {
        let call = Forward {
            input: &self.x,
            shape,
            weight: Some(&self.weight),
            bias: Some(&self.bias),
            eps: EPS,
            running: Some(RunningStats {
                mean: &self.running_mean,
                var: &self.running_var,
                momentum: Some(MOMENTUM),
                num_batches_tracked: Some(&self.tracked),
            }),
            output: &self.y,
            statistics: &mut self.statistics,
        };
        sync_batch_norm::forward(device, group, call)
    }

    fn backward(&self, device: &Device, shape: BatchNormShape, group: Group<'_, Device>, input: bool) -> Result<()> {
        let call = Backward {
            input: &self.x,
            grad_output: &self.dy,
            shape,
            weight: Some(&self.weight),
            statistics: &self.statistics,
            batch_statistics: true,
            grad_input: input.then_some(&self.dx),
            grad_weight: Some(&self.grad_weight),
            grad_bias: Some(&self.grad_bias),
        };
        sync_batch_norm::backward(device, group, call)
    }

    fn double_backward(&self, device: &Device, shape: BatchNormShape, group: Group<'_, Device>) -> Result<()> {
        let call = DoubleBackward {
            input: &self.x,
            grad_output: &self.dy,
            grad_grad_input: &self.g,
            grad_grad_weight: Some(&self.ggw),
            grad_grad_bias: Some(&self.ggb),
            weight: Some(&self.weight),
            shape,
            statistics: &self.statistics,
            batch_statistics: true,
            grad_input: &self.to_x,
            grad_grad_output: &self.to_dy,
            grad_weight: Some(&self.to_w),
        };
        sync_batch_norm::double_backward(device, group, call)
    }
}

/// Runs `body(device, group, tensors, rank)` on a thread and a device for each rank.
fn on_ranks<T: Send>(
    problem: &Problem,
    statistics: DType,
    body: impl Fn(&Device, &Member<'_>, Tensors, usize) -> T + Sync,
) -> Vec<T> {
    let meeting: Arc<Meeting> = Meeting::new(problem.ranks());
    thread::scope(|scope| {
        let (body, meeting) = (&body, &meeting);
        let run = move |rank| {
            let device = Device::new(statistics);
            let tensors = Tensors::new(&device, problem, rank);
            body(&device, &Member::new(&device, meeting, rank), tensors, rank)
        };
        let handles: Vec<_> = (0..problem.ranks()).map(|rank| scope.spawn(move || run(rank))).collect();
        handles.into_iter().map(|handle| handle.join().unwrap()).collect()
    })
}

#[track_caller]
fn assert_close(what: &str, got: &[f64], expected: &[f64], tolerance: f64) {
    assert_eq!(got.len(), expected.len(), "{what}");
    let scale = expected.iter().fold(1.0, |scale: f64, value| scale.max(value.abs()));
    for (index, (got, expected)) in got.iter().zip(expected).enumerate() {
        let close = (got - expected).abs() <= tolerance * scale;
        assert!(close, "{what}, element {index}: {got} instead of {expected}");
    }
}

/// Worlds of one to three ranks with unequal and empty batches.
const WORLDS: [&[usize]; 7] = [&[4], &[2, 3], &[0, 2], &[5, 0], &[1, 4, 2], &[0, 3, 1], &[2, 0, 0]];

fn at_each(test: impl Fn(&str, Problem, DType)) {
    for (batches, statistics) in WORLDS.into_iter().flat_map(|world| [DType::F32, DType::F64].map(|s| (world, s))) {
        test(&format!("batches {batches:?}, statistics in {statistics}"), Problem::new(batches), statistics);
    }
}

#[test]
fn forward_and_backward_are_enqueued_without_a_wait_and_give_the_reference() {
    at_each(|what, problem, statistics| {
        let (forward, backward) = (problem.forward(), problem.backward());
        let tensors = on_ranks(&problem, statistics, |device, group, mut tensors, rank| {
            let shape = problem.shapes[rank];
            let exchanges = usize::from(problem.ranks() > 1);
            tensors.forward(device, shape, Some(group)).unwrap();
            assert_eq!(device.enqueued(), Enqueued { kernels: 2, collectives: exchanges }, "{what}: forward");
            tensors.backward(device, shape, Some(group), true).unwrap();
            assert_eq!(device.enqueued(), Enqueued { kernels: 4, collectives: 2 * exchanges }, "{what}: backward");
            assert_eq!(device.run(), 0, "{what}: work ran before anybody waited for it");
            device.synchronize().unwrap();
            tensors
        });
        let tolerance = tolerance(statistics);
        for (rank, tensors) in tensors.iter().enumerate() {
            let what = |part: &str| format!("{what}, {part} of rank {rank}");
            assert_close(&what("y"), &tensors.y.numbers(), &forward.outputs[rank], tolerance);
            assert_close(&what("dx"), &tensors.dx.numbers(), &backward.grad_inputs[rank], tolerance);
            assert_close(&what("dw"), &tensors.grad_weight.numbers(), &backward.grad_weights[rank], tolerance);
            assert_close(&what("db"), &tensors.grad_bias.numbers(), &backward.grad_biases[rank], tolerance);
            let running = |old: f64, new: f64| running_stats::update(old, new, MOMENTUM);
            let n = forward.count as f64;
            let mean: Vec<f64> = forward.mean.iter().map(|&mean| running(0.0, mean)).collect();
            let var: Vec<f64> = forward.var.iter().map(|&var| running(1.0, var * n / (n - 1.0))).collect();
            assert_close(&what("running mean"), &tensors.running_mean.numbers(), &mean, tolerance);
            assert_close(&what("running var"), &tensors.running_var.numbers(), &var, tolerance);
            assert_eq!(tensors.tracked.numbers(), [1.0], "{}", what("counter"));
        }
        // Merged in rank order, so the same bits everywhere.
        let first = &tensors[0];
        for other in &tensors {
            assert_eq!(other.running_mean.numbers(), first.running_mean.numbers(), "{what}");
            assert_eq!(other.running_var.numbers(), first.running_var.numbers(), "{what}");
        }
    });
}

#[test]
fn double_backward_is_enqueued_without_a_wait_and_gives_the_slopes() {
    at_each(|what, mut problem, statistics| {
        let tensors = on_ranks(&problem, statistics, |device, group, mut tensors, rank| {
            tensors.forward(device, problem.shapes[rank], Some(group)).unwrap();
            let before = device.enqueued();
            tensors.double_backward(device, problem.shapes[rank], Some(group)).unwrap();
            let exchanges = usize::from(problem.ranks() > 1);
            let expected = Enqueued { kernels: before.kernels + 2, collectives: before.collectives + exchanges };
            assert_eq!((device.enqueued(), device.run()), (expected, 0), "{what}");
            device.synchronize().unwrap();
            tensors
        });
        let tolerance = tolerance(statistics).max(1e-7);
        for (rank, tensors) in tensors.iter().enumerate() {
            let elements = 0..problem.x[rank].len();
            let to_x: Vec<f64> = elements.clone().map(|i| problem.slope(|p| &mut p.x[rank][i])).collect();
            assert_close(&format!("{what}, to x of rank {rank}"), &tensors.to_x.numbers(), &to_x, tolerance);
            let to_dy: Vec<f64> = elements.map(|i| problem.slope(|p| &mut p.dy[rank][i])).collect();
            assert_close(&format!("{what}, to dy of rank {rank}"), &tensors.to_dy.numbers(), &to_dy, tolerance);
        }
        // Each rank's part is over its own elements; together they are the slope.
        let to_w: Vec<f64> = (0..CHANNELS).map(|c| problem.slope(|p| &mut p.weight[c])).collect();
        let sum = |c: usize| tensors.iter().map(|tensors| tensors.to_w.numbers()[c]).sum();
        assert_close(&format!("{what}, to w"), &(0..CHANNELS).map(sum).collect::<Vec<f64>>(), &to_w, tolerance);
    });
}

#[test]
fn a_group_of_one_and_no_group_exchange_nothing_and_agree_bit_for_bit() {
    let problem = Problem::new(&[4]);
    let run = |in_group: bool| {
        let mut all = on_ranks(&problem, DType::F64, |device, member, mut tensors, rank| {
            let group = in_group.then_some(member as &dyn Collective<Memory>);
            tensors.forward(device, problem.shapes[rank], group).unwrap();
            tensors.backward(device, problem.shapes[rank], group, true).unwrap();
            tensors.double_backward(device, problem.shapes[rank], group).unwrap();
            assert_eq!(device.enqueued(), Enqueued { kernels: 6, collectives: 0 });
            device.synchronize().unwrap();
            [tensors.y, tensors.dx, tensors.grad_weight, tensors.to_x, tensors.to_dy].map(|memory| memory.numbers())
        });
        all.remove(0)
    };
    assert_eq!(run(true), run(false));
}

#[test]
fn backward_without_an_input_gradient_exchanges_nothing() {
    let problem = Problem::new(&[3, 2]);
    let backward = problem.backward();
    on_ranks(&problem, DType::F64, |device, group, mut tensors, rank| {
        tensors.forward(device, problem.shapes[rank], Some(group)).unwrap();
        tensors.backward(device, problem.shapes[rank], Some(group), false).unwrap();
        assert_eq!(device.enqueued(), Enqueued { kernels: 3, collectives: 1 });
        device.synchronize().unwrap();
        assert_close("dw", &tensors.grad_weight.numbers(), &backward.grad_weights[rank], 1e-11);
        assert_close("db", &tensors.grad_bias.numbers(), &backward.grad_biases[rank], 1e-11);
        assert!(tensors.dx.numbers().iter().all(|value| value.is_nan()), "dx was written");
    });
}

#[test]
fn one_value_in_all_is_reported_by_the_status_word_on_every_rank() {
    for batches in [&[1][..], &[0, 1], &[0, 1, 0]] {
        let mut problem = Problem::new(batches);
        problem.shapes.iter_mut().for_each(|shape| shape.spatial = 1);
        let shorten = |tensors: &mut [Vec<f64>], shapes: &[BatchNormShape]| {
            tensors.iter_mut().zip(shapes).for_each(|(tensor, shape)| tensor.truncate(shape.numel()));
        };
        shorten(&mut problem.x, &problem.shapes);
        shorten(&mut problem.dy, &problem.shapes);
        on_ranks(&problem, DType::F64, |device, group, mut tensors, rank| {
            // The call cannot know yet; nothing is committed all the same.
            tensors.forward(device, problem.shapes[rank], Some(group)).unwrap();
            assert_eq!(device.synchronize().unwrap_err().code(), Code::TooFewValues);
            assert_eq!(tensors.running_mean.numbers(), [0.0; CHANNELS]);
            assert_eq!(tensors.running_var.numbers(), [1.0; CHANNELS]);
            assert_eq!(tensors.tracked.numbers(), [0.0]);
            device.synchronize().unwrap();
        });
    }
}

#[test]
fn all_ranks_empty_leave_the_running_statistics() {
    let problem = Problem::new(&[0, 0, 0]);
    on_ranks(&problem, DType::F32, |device, group, mut tensors, rank| {
        tensors.forward(device, problem.shapes[rank], Some(group)).unwrap();
        tensors.backward(device, problem.shapes[rank], Some(group), true).unwrap();
        device.synchronize().unwrap();
        assert_eq!(tensors.running_var.numbers(), [1.0; CHANNELS]);
        assert_eq!(tensors.tracked.numbers(), [0.0]);
        assert_eq!(tensors.grad_weight.numbers(), [0.0; CHANNELS]);
        assert_eq!(tensors.grad_bias.numbers(), [0.0; CHANNELS]);
    });
}

#[test]
fn eval_mode_is_two_kernels_forward_and_two_backward_without_an_exchange() {
    let problem = Problem::new(&[2, 3]);
    on_ranks(&problem, DType::F64, |device, group, mut tensors, rank| {
        let (shape, mean, var) = (problem.shapes[rank], Memory::of(&[0.5; CHANNELS]), Memory::of(&[4.0; CHANNELS]));
        device.constant_statistics(&mean, &var, EPS, &mut tensors.statistics).unwrap();
        let (weight, bias) = (Some(&tensors.weight), Some(&tensors.bias));
        let statistics = &tensors.statistics;
        device.elemt(Elemt { input: &tensors.x, shape, weight, bias, statistics, output: &tensors.y }).unwrap();
        let call = Backward {
            input: &tensors.x,
            grad_output: &tensors.dy,
            shape,
            weight,
            statistics,
            batch_statistics: false,
            grad_input: Some(&tensors.dx),
            grad_weight: Some(&tensors.grad_weight),
            grad_bias: Some(&tensors.grad_bias),
        };
        sync_batch_norm::backward(device, Some(group), call).unwrap();
        assert_eq!((device.enqueued(), device.run()), (Enqueued { kernels: 4, collectives: 0 }, 0));
        device.synchronize().unwrap();
        let invstd = 1.0 / (4.0 + EPS).sqrt();
        let (mut y, mut dx) = (vec![0.0; shape.numel()], vec![0.0; shape.numel()]);
        for (sample, c) in (0..shape.batch).flat_map(|n| (0..CHANNELS).map(move |c| (n, c))) {
            let (start, step) = shape.run(sample, c);
            for i in (0..shape.spatial).map(|i| start + i * step) {
                y[i] = problem.weight[c] * (problem.x[rank][i] - 0.5) * invstd + problem.bias[c];
                dx[i] = problem.weight[c] * invstd * problem.dy[rank][i];
            }
        }
        assert_close("y", &tensors.y.numbers(), &y, 1e-14);
        assert_close("dx", &tensors.dx.numbers(), &dx, 1e-14);
    });
}
