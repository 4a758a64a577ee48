//! The numeric contract over real process groups: one test per row, ranks as threads over loopback sockets.

#[path = "support/formulas.rs"]
mod formulas;
#[path = "support/problem.rs"]
mod problem;
mod support;

use formulas::{assert_close, assert_steps};
use problem::{ALL, Layer, Problem, Running, Step};
use support::{Place, bytes, expect, join_all, place, ranks, tensor, values};
use syncbn_core::generator::Generator;
use syncbn_core::{ChannelStats, Code, DType, MemoryFormat};
use syncbn_runtime::array::Options;
use syncbn_runtime::batch_norm::{self, GradGradients, Needs, Parameters};
use syncbn_runtime::{ProcessGroup, Tensor, split};

const DTYPES: [DType; 2] = [DType::F32, DType::F64];
const FORMATS: [MemoryFormat; 2] = [MemoryFormat::Contiguous, MemoryFormat::ChannelsLast];

/// Worlds of one to four ranks that differ in N, H and W; some ranks are empty.
const WORLDS: [&[&[usize]]; 5] = [
    &[&[3, 5, 7, 3]],
    &[&[2, 7, 5, 3], &[3, 7, 1, 9]],
    &[&[1, 1, 1, 1], &[5, 1, 11, 3], &[0, 1, 4, 4]],
    &[&[0, 3, 2, 2], &[4, 3, 9, 13], &[1, 3, 1, 1]],
    &[&[3, 33, 5, 5], &[1, 33, 2, 7], &[0, 33, 5, 5], &[2, 33, 3, 1]],
];

/// Calls `test` for every world, element type and format.
fn at_each(test: impl Fn(&str, Problem)) {
    for (seed, shapes) in WORLDS.into_iter().enumerate() {
        for (dtype, format) in DTYPES.into_iter().flat_map(|dtype| FORMATS.map(|format| (dtype, format))) {
            test(&format!("{shapes:?} {dtype} {format}"), Problem::new(shapes, dtype, format, seed as u64));
        }
    }
}

fn bits(values: &[f64]) -> Vec<u64> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// Asserts that statistics and running buffers are the same on all ranks, bit for bit.
fn assert_same_state(what: &str, steps: &[Step]) {
    for (rank, step) in steps.iter().enumerate() {
        let first = &steps[0];
        assert_eq!(step.saved.0, first.saved.0, "{what}: count of rank {rank}");
        assert_eq!(bits(&step.saved.1), bits(&first.saved.1), "{what}: mean of rank {rank}");
        assert_eq!(bits(&step.saved.2), bits(&first.saved.2), "{what}: invstd of rank {rank}");
        assert_eq!(bits(&step.running.mean), bits(&first.running.mean), "{what}: running mean of rank {rank}");
        assert_eq!(bits(&step.running.var), bits(&first.running.var), "{what}: running var of rank {rank}");
    }
}

#[test]
fn row_01_statistics_merge_in_rank_order_and_are_bit_identical() {
    at_each(|what, problem| {
        let steps = problem.run();
        assert_same_state(what, &steps);
        let locals: Vec<ChannelStats> = (0..problem.ranks()).map(|rank| local_statistics(&problem, rank)).collect();
        let merged = ChannelStats::merge_all(&locals).unwrap();
        let (count, mean, _) = &steps[0].saved;
        assert_eq!(*count, merged.count, "{what}");
        if problem.ranks() > 1 && place() == Place::Cpu {
            assert_eq!(bits(mean), bits(&merged.mean), "{what}: not the merge in rank order");
        }
        let exact = formulas::exact(&problem);
        assert_close(&format!("{what}: mean"), DType::F64, mean, &exact.mean, &formulas::plain(&problem).mean);
    });
}

/// Count, mean and M2 of one rank's batch.
fn local_statistics(problem: &Problem, rank: usize) -> ChannelStats {
    split::stats(&problem.layer(rank).x).unwrap()
}

#[test]
fn row_03_output_keeps_dtype_and_format() {
    at_each(|what, problem| {
        for affine in [true, false] {
            let mut problem = problem.clone();
            if !affine {
                (problem.weight, problem.bias) = (None, None);
            }
            let steps = problem.run();
            assert_steps(what, &problem, &steps);
            assert!(steps.iter().all(|step| (step.dtype, step.format) == (problem.dtype, problem.format)), "{what}");
        }
    });
}

#[test]
fn row_03_eps_is_added_to_the_biased_variance() {
    for eps in [1e-5, 0.5, 1e3] {
        let problem = Problem::new(WORLDS[1], DType::F64, MemoryFormat::Contiguous, 7);
        let problem = Problem { eps, ..problem };
        let (steps, exact) = (problem.run(), formulas::exact(&problem));
        let invstd: Vec<f64> = exact.var.iter().map(|var| 1.0 / (var + eps).sqrt()).collect();
        assert_close(&format!("invstd for eps {eps}"), DType::F64, &steps[1].saved.2, &invstd, &invstd);
        assert_steps(&format!("eps {eps}"), &problem, &steps);
    }
}

#[test]
fn row_04_running_statistics_use_the_unbiased_global_variance() {
    for (momentum, dtype) in
        [Some(1.0), Some(0.1), Some(0.0), None].into_iter().flat_map(|m| DTYPES.map(|dtype| (m, dtype)))
    {
        let what = format!("momentum {momentum:?}, {dtype}");
        let batches: Vec<Problem> = (0..3)
            .map(|seed| {
                let problem = Problem::new(WORLDS[2], dtype, MemoryFormat::Contiguous, 40 + seed);
                Problem { momentum, ..problem }.with_input(|_, _, u| 3.0 + 2.0 * u)
            })
            .collect();
        let running = ranks(3, |group| {
            let first = batches[0].layer(group.member_rank().unwrap());
            let after_each: Vec<Running> = batches.iter().map(|batch| train_on(&first, batch, group)).collect();
            after_each[2].clone()
        });
        assert!(running.iter().all(|of_rank| of_rank == &running[0]), "{what}: ranks differ");
        let (mean, var) = expected_running(&batches, momentum);
        assert_close(&format!("{what}: mean"), dtype, &running[0].mean, &mean, &mean);
        assert_close(&format!("{what}: var"), dtype, &running[0].var, &var, &var);
        assert_eq!(running[0].num_batches_tracked, 3.0, "{what}");
    }
}

/// One more step of `layer` on this rank's part of `batch`.
fn train_on(layer: &Layer, batch: &Problem, group: &ProcessGroup) -> Running {
    let next = batch.layer(group.member_rank().unwrap());
    let layer = Layer { x: next.x, dy: next.dy, ..layer.clone() };
    layer.step(batch.options(), Some(group)).unwrap().running
}

/// The rule, step by step, from mean 0 and variance 1.
fn expected_running(batches: &[Problem], momentum: Option<f64>) -> (Vec<f64>, Vec<f64>) {
    let channels = batches[0].channels();
    let (mut mean, mut var) = (vec![0.0; channels], vec![1.0; channels]);
    for (index, batch) in batches.iter().enumerate() {
        let (new, factor) = (formulas::exact(batch), momentum.unwrap_or(1.0 / (index + 1) as f64));
        for channel in 0..channels {
            let n = batch.elements(channel).len() as f64;
            mean[channel] = (1.0 - factor) * mean[channel] + factor * new.mean[channel];
            var[channel] = (1.0 - factor) * var[channel] + factor * new.var[channel] * n / (n - 1.0);
        }
    }
    (mean, var)
}

#[test]
fn row_05_input_gradient_uses_group_sums_and_parameter_gradients_stay_local() {
    at_each(|what, problem| assert_steps(what, &problem, &problem.run()));
}

#[test]
fn row_05_no_exchange_without_an_input_gradient() {
    let problem = Problem::new(WORLDS[1], DType::F32, MemoryFormat::Contiguous, 5);
    let exact = formulas::exact(&problem);
    let plain = formulas::plain(&problem);
    let grads = ranks(2, |group| {
        let rank = group.member_rank().unwrap();
        let layer = problem.layer(rank);
        let (_, saved) = batch_norm::forward(&layer.x, layer.parameters(), problem.options(), Some(group)).unwrap();
        let needs = Needs { input: false, ..ALL };
        // Ranks call it different numbers of times: an exchange would be answered with a mismatch by the barrier.
        let backward = || batch_norm::backward(&layer.dy, &layer.x, layer.weight.as_ref(), &saved, needs).unwrap();
        let mut grads = backward();
        (0..rank).for_each(|_| grads = backward());
        group.run(syncbn_comm::Group::barrier).unwrap();
        assert!(grads.input.is_none());
        (values(&grads.weight.unwrap()), values(&grads.bias.unwrap()))
    });
    for (rank, (weight, bias)) in grads.iter().enumerate() {
        assert_close("grad weight", DType::F32, weight, &exact.grad_weight[rank], &plain.grad_weight[rank]);
        assert_close("grad bias", DType::F32, bias, &exact.grad_bias[rank], &plain.grad_bias[rank]);
    }
}

#[test]
fn row_05_backward_of_constant_statistics() {
    for (dtype, format) in DTYPES.into_iter().flat_map(|dtype| FORMATS.map(|format| (dtype, format))) {
        let problem = Problem::new(&[&[3, 5, 7, 3]], dtype, format, 9);
        let layer = trained_layer(&problem);
        let options = Options { training: false, ..problem.options() };
        let (y, saved) = batch_norm::forward(&layer.x, layer.parameters(), options, None).unwrap();
        let grads = batch_norm::backward(&layer.dy, &layer.x, layer.weight.as_ref(), &saved, ALL).unwrap();
        let (mean, var) = (values(&layer.running_mean), values(&layer.running_var));
        let invstd: Vec<f64> = var.iter().map(|var| 1.0 / (var + problem.eps).sqrt()).collect();
        let (weight, bias) = (problem.weight.as_ref().unwrap(), problem.bias.as_ref().unwrap());
        let at_each = |value: &dyn Fn(usize, usize) -> f64| -> Vec<f64> {
            (0..problem.x[0].len()).map(|i| value(i, problem.channel(0, i))).collect()
        };
        let normalized = |i: usize, c: usize| (problem.x[0][i] - mean[c]) * invstd[c];
        let expected = at_each(&|i, c| weight[c] * normalized(i, c) + bias[c]);
        assert_close("y", dtype, &values(&y), &expected, &expected);
        let expected = at_each(&|i, c| weight[c] * invstd[c] * problem.dy[0][i]);
        assert_close("dx", dtype, &values(&grads.input.unwrap()), &expected, &expected);
        let sums = |term: &dyn Fn(usize, usize) -> f64| -> Vec<f64> {
            (0..5).map(|c| problem.elements(c).iter().map(|&(_, i)| term(i, c)).sum()).collect()
        };
        let expected = sums(&|i, c| problem.dy[0][i] * normalized(i, c));
        assert_close("grad weight", dtype, &values(&grads.weight.unwrap()), &expected, &expected);
        let expected = sums(&|i, _| problem.dy[0][i]);
        assert_close("grad bias", dtype, &values(&grads.bias.unwrap()), &expected, &expected);
    }
}

/// A layer whose running statistics are not the initial ones.
fn trained_layer(problem: &Problem) -> Layer {
    let layer = problem.layer(0);
    layer.step(Options { momentum: Some(0.7), ..problem.options() }, None).unwrap();
    layer
}

#[test]
fn row_06_a_group_of_one_is_no_group_bit_for_bit() {
    for (dtype, format) in DTYPES.into_iter().flat_map(|dtype| FORMATS.map(|format| (dtype, format))) {
        let problem = Problem::new(&[&[5, 17, 3, 7]], dtype, format, 3);
        let alone = problem.step(0, None).unwrap();
        let in_group = problem.run().remove(0);
        assert_eq!(alone, in_group);
        assert_eq!((bits(&alone.y), bits(&alone.dx)), (bits(&in_group.y), bits(&in_group.dx)));
    }
}

#[test]
fn row_06_eval_never_exchanges() {
    let problem = Problem::new(WORLDS[1], DType::F32, MemoryFormat::Contiguous, 11);
    ranks(2, |group| {
        let rank = group.member_rank().unwrap();
        let layer = problem.layer(rank);
        let options = Options { training: false, ..problem.options() };
        for _ in 0..3 * rank {
            let (_, saved) = batch_norm::forward(&layer.x, layer.parameters(), options, Some(group)).unwrap();
            batch_norm::backward(&layer.dy, &layer.x, layer.weight.as_ref(), &saved, ALL).unwrap();
        }
        assert_eq!(layer.running(), problem.layer(rank).running(), "eval changed the buffers");
        group.run(syncbn_comm::Group::barrier).unwrap();
    });
}

#[test]
fn row_07_empty_ranks_take_part() {
    for (dtype, format) in DTYPES.into_iter().flat_map(|dtype| FORMATS.map(|format| (dtype, format))) {
        for shapes in [
            &[&[0, 3, 5, 5][..], &[4, 3, 2, 3]][..],
            &[&[4, 3, 2, 3], &[0, 3, 5, 5]],
            &[&[2, 3, 0, 5], &[1, 3, 2, 2], &[0, 3, 0, 0], &[3, 3, 1, 1]],
        ] {
            let what = format!("{shapes:?} {dtype} {format}");
            let problem = Problem::new(shapes, dtype, format, 13);
            let steps = problem.run();
            assert_steps(&what, &problem, &steps);
            assert_same_state(&what, &steps);
            for (rank, step) in steps.iter().enumerate().filter(|(rank, _)| problem.x[*rank].is_empty()) {
                assert!(step.y.is_empty() && step.dx.is_empty(), "{what}");
                assert!(step.grad_weight.iter().chain(&step.grad_bias).all(|&grad| grad == 0.0), "{what} rank {rank}");
            }
        }
    }
}

#[test]
fn row_07_all_ranks_empty_change_nothing() {
    for (dtype, size) in DTYPES.into_iter().flat_map(|dtype| [1, 3].map(|size| (dtype, size))) {
        let shapes: Vec<&[usize]> = vec![&[0, 4, 3, 3]; size];
        let problem = Problem::new(&shapes, dtype, MemoryFormat::Contiguous, 17);
        for (rank, step) in problem.run().into_iter().enumerate() {
            assert_eq!(step.running, problem.layer(rank).running());
            assert_eq!(step.saved.0, 0);
            assert!(step.y.is_empty() && step.dx.is_empty());
            assert!(step.grad_weight.iter().chain(&step.grad_bias).all(|&gradient| gradient == 0.0));
        }
    }
}

#[test]
fn row_07_one_value_in_all_is_an_error_on_every_rank() {
    let shapes: [&[&[usize]]; 3] =
        [&[&[1, 3]], &[&[1, 3, 1, 1], &[0, 3, 5, 5]], &[&[0, 3, 1, 1], &[0, 3, 2, 2], &[1, 3, 1, 1]]];
    for (dtype, shapes) in DTYPES.into_iter().flat_map(|dtype| shapes.map(|shapes| (dtype, shapes))) {
        let problem = Problem::new(shapes, dtype, MemoryFormat::Contiguous, 19);
        ranks(shapes.len(), |group| {
            let rank = group.member_rank().unwrap();
            let (layer, before) = (problem.layer(rank), problem.layer(rank).running());
            for _ in 0..2 {
                let error = expect(layer.step(problem.options(), Some(group)), Code::TooFewValues);
                assert!(error.message().contains("Expected more than 1 value per channel when training"), "{error}");
            }
            assert_eq!(layer.running(), before);
            // The exchange itself went well, so the group is still good.
            group.run(syncbn_comm::Group::barrier).unwrap();
        });
    }
}

#[test]
fn row_08_affine_and_running_statistics_off_in_any_combination() {
    let base = Problem::new(WORLDS[1], DType::F32, MemoryFormat::ChannelsLast, 23);
    for (weight, bias, track) in (0..8).map(|i| (i & 1 != 0, i & 2 != 0, i & 4 != 0)) {
        let mut problem = base.clone();
        problem.weight = problem.weight.filter(|_| weight);
        problem.bias = problem.bias.filter(|_| bias);
        let steps = ranks(2, |group| {
            let layer = problem.layer(group.member_rank().unwrap());
            let (weight, bias) = (layer.weight.as_ref(), layer.bias.as_ref());
            let parameters =
                if track { layer.parameters() } else { Parameters { weight, bias, ..Parameters::default() } };
            let (y, saved) = batch_norm::forward(&layer.x, parameters, problem.options(), Some(group)).unwrap();
            assert_eq!(layer.running().num_batches_tracked, if track { 1.0 } else { 0.0 });
            let grads = batch_norm::backward(&layer.dy, &layer.x, weight, &saved, ALL).unwrap();
            (values(&y), values(&grads.input.unwrap()))
        });
        let (exact, plain) = (formulas::exact(&problem), formulas::plain(&problem));
        for (rank, (y, dx)) in steps.iter().enumerate() {
            let what = format!("weight {weight}, bias {bias}, running {track}, rank {rank}");
            assert_close(&what, DType::F32, y, &exact.y[rank], &plain.y[rank]);
            assert_close(&what, DType::F32, dx, &exact.dx[rank], &plain.dx[rank]);
        }
    }
}

/// A call that is wrong in one way, the same on every rank.
struct Wrong {
    what: &'static str,
    code: Code,
    options: Options,
    change: fn(Layer) -> Layer,
    /// Leaves out the counter.
    untracked: bool,
}

fn wrong_calls(good: Options) -> Vec<Wrong> {
    let same = |layer| layer;
    let options = |what, code, options| Wrong { what, code, options, change: same, untracked: false };
    let tensors = |what, code, change| Wrong { what, code, options: good, change, untracked: false };
    vec![
        options("eps 0", Code::Argument, Options { eps: 0.0, ..good }),
        options("negative eps", Code::Argument, Options { eps: -1e-5, ..good }),
        options("NaN eps", Code::Argument, Options { eps: f64::NAN, ..good }),
        options("NaN momentum", Code::Argument, Options { momentum: Some(f64::NAN), ..good }),
        options("infinite momentum", Code::Argument, Options { momentum: Some(f64::INFINITY), ..good }),
        tensors("weight too long", Code::Shape, |l| Layer { weight: Some(ones(8, DType::F32)), ..l }),
        tensors("bias too short", Code::Shape, |l| Layer { bias: Some(ones(6, DType::F32)), ..l }),
        tensors("integer weight", Code::DType, |l| Layer { weight: Some(ones(7, DType::I32)), ..l }),
        tensors("float64 weight for float32", Code::DType, |l| Layer { weight: Some(ones(7, DType::F64)), ..l }),
        tensors("running mean too long", Code::Shape, |l| Layer { running_mean: ones(8, DType::F32), ..l }),
        tensors("integer running var", Code::DType, |l| Layer { running_var: ones(7, DType::I64), ..l }),
        tensors("float counter", Code::DType, |l| Layer { num_batches_tracked: ones(1, DType::F32), ..l }),
        tensors("integer input", Code::DType, |l| Layer { x: l.x.to_dtype(DType::I32).unwrap(), ..l }),
        tensors("input of one dimension", Code::Shape, |l| Layer { x: ones(7, DType::F32), ..l }),
        Wrong {
            untracked: true,
            ..options("cumulative without counter", Code::Argument, Options { momentum: None, ..good })
        },
    ]
}

fn ones(len: usize, dtype: DType) -> Tensor {
    tensor(&vec![1.0; len], &[len], dtype, MemoryFormat::Contiguous)
}

#[test]
fn row_08_arguments_are_checked_before_any_side_effect() {
    let problem = Problem::new(WORLDS[1], DType::F32, MemoryFormat::Contiguous, 29);
    let mut calls = wrong_calls(problem.options());
    if place() == Place::Cpu {
        let change = |l: Layer| Layer { x: l.x.to_dtype(DType::F16).unwrap(), ..l };
        let (what, code, options) = ("half input", Code::DType, problem.options());
        calls.push(Wrong { what, code, options, change, untracked: false });
    }
    ranks(2, |group| {
        let rank = group.member_rank().unwrap();
        // Rank 1 makes no wrong call at all: an exchange by rank 0 would meet its barrier.
        for call in calls.iter().filter(|_| rank == 0) {
            for group in [Some(group), None] {
                let layer = (call.change)(problem.layer(rank));
                let buffers = [&layer.running_mean, &layer.running_var, &layer.num_batches_tracked];
                let before = buffers.map(bytes);
                let mut parameters = layer.parameters();
                parameters.num_batches_tracked = parameters.num_batches_tracked.filter(|_| !call.untracked);
                let error = batch_norm::forward(&layer.x, parameters, call.options, group).unwrap_err();
                assert_eq!(error.code(), call.code, "{}: {error:?}", call.what);
                assert_eq!(buffers.map(bytes), before, "{} changed a buffer", call.what);
                assert!(buffers.iter().all(|buffer| buffer.storage().version() == 0), "{}", call.what);
            }
        }
        group.run(syncbn_comm::Group::barrier).unwrap();
        problem.step(rank, Some(group)).unwrap();
    });
}

#[test]
fn row_08_backward_refuses_other_tensors_than_the_forward_call_had() {
    let problem = Problem::new(&[&[3, 5, 7, 3]], DType::F32, MemoryFormat::Contiguous, 31);
    let layer = problem.layer(0);
    let (_, saved) = batch_norm::forward(&layer.x, layer.parameters(), problem.options(), None).unwrap();
    let backward = |dy: &Tensor, x: &Tensor, weight| batch_norm::backward(dy, x, weight, &saved, ALL);
    let (dy, x, weight) = (&layer.dy, &layer.x, layer.weight.as_ref());
    let other = Problem::new(&[&[2, 5, 7, 3]], DType::F32, MemoryFormat::Contiguous, 31).layer(0).x;
    expect(backward(&other, x, weight), Code::Shape);
    expect(backward(dy, &other, weight), Code::Shape);
    expect(backward(&dy.to_dtype(DType::F64).unwrap(), x, weight), Code::DType);
    expect(backward(dy, &x.to_dtype(DType::F64).unwrap(), weight), Code::DType);
    expect(backward(dy, &x.to_format(MemoryFormat::ChannelsLast).unwrap(), weight), Code::Shape);
    expect(batch_norm::backward(dy, x, Some(&ones(4, DType::F32)), &saved, ALL), Code::Shape);
    // A gradient in the other format is converted instead.
    let converted = backward(&dy.to_format(MemoryFormat::ChannelsLast).unwrap(), x, weight).unwrap();
    let same = backward(dy, x, weight).unwrap();
    assert_eq!(values(&converted.input.unwrap()), values(&same.input.unwrap()));
}

#[test]
fn row_09_a_group_without_this_rank_is_an_error() {
    let problem = Problem::new(WORLDS[1], DType::F32, MemoryFormat::Contiguous, 37);
    ranks(3, |world| {
        let pair = world.new_group(&[2, 0], None).unwrap();
        let layer = problem.layer(0);
        match pair.member_rank() {
            None => {
                let error = expect(layer.step(problem.options(), Some(&pair)), Code::NotInGroup);
                assert_eq!(error.group(), Some(pair.name()));
                assert_eq!(layer.running(), problem.layer(0).running());
            }
            Some(rank) => assert_eq!(problem.step(rank, Some(&pair)).unwrap().saved.0, 57),
        }
    });
}

#[test]
fn row_09_only_members_are_merged() {
    let problem = Problem::new(WORLDS[1], DType::F64, MemoryFormat::ChannelsLast, 41);
    let steps = ranks(3, |world| {
        let pair = world.new_group(&[2, 0], None).unwrap();
        pair.member_rank().map(|rank| (rank, problem.step(rank, Some(&pair)).unwrap()))
    });
    let mut steps: Vec<(usize, Step)> = steps.into_iter().flatten().collect();
    steps.sort_by_key(|(rank, _)| *rank);
    let steps: Vec<Step> = steps.into_iter().map(|(_, step)| step).collect();
    assert_steps("a group of two of three", &problem, &steps);
}

#[test]
fn row_11_large_means_stay_exact() {
    for (ratio, dtype) in [1e4, 1e6].into_iter().flat_map(|ratio| DTYPES.map(|dtype| (ratio, dtype))) {
        for (shapes, format) in WORLDS.into_iter().flat_map(|shapes| FORMATS.map(|format| (shapes, format))) {
            let problem = Problem::new(shapes, dtype, format, 43).with_input(|_, _, u| ratio + u);
            let problem = Problem { momentum: Some(1.0), ..problem };
            assert_steps(&format!("mean/std {ratio:e}, {shapes:?} {dtype} {format}"), &problem, &problem.run());
        }
    }
}

#[test]
fn row_11_an_outlier_first_stays_exact() {
    for (shapes, dtype) in WORLDS.into_iter().flat_map(|shapes| DTYPES.map(|dtype| (shapes, dtype))) {
        for format in FORMATS {
            let outlier = |_, i, u| if i == 0 { 1e6 } else { u };
            let problem = Problem::new(shapes, dtype, format, 47).with_input(outlier);
            assert_steps(&format!("outlier first, {shapes:?} {dtype} {format}"), &problem, &problem.run());
        }
    }
}

#[test]
fn row_11_ranks_with_far_apart_means_merge_exactly() {
    for (dtype, format) in DTYPES.into_iter().flat_map(|dtype| FORMATS.map(|format| (dtype, format))) {
        let far = |rank: usize, _, u| rank as f64 * 1e4 + u;
        let problem = Problem::new(WORLDS[4], dtype, format, 53).with_input(far);
        assert_steps(&format!("means 1e4 apart, {dtype} {format}"), &problem, &problem.run());
    }
}

#[test]
fn row_12_double_backward_over_ranks_is_that_of_the_whole_batch() {
    for format in FORMATS {
        let whole = Problem::new(&[&[5, 3, 4, 3]], DType::F64, format, 59);
        let grad_grad = Generator::new(61).randn_f64(whole.x[0].len());
        let parts = [0..2, 2..2, 2..5];
        let part =
            |values: &[f64], samples: &std::ops::Range<usize>| values[samples.start * 36..samples.end * 36].to_vec();
        let split = Problem {
            shapes: parts.iter().map(|part| vec![part.len(), 3, 4, 3]).collect(),
            x: parts.iter().map(|samples| part(&whole.x[0], samples)).collect(),
            dy: parts.iter().map(|samples| part(&whole.dy[0], samples)).collect(),
            ..whole.clone()
        };
        let run = |problem: &Problem, rank: usize, g: &[f64], group: Option<&ProcessGroup>| {
            let layer = problem.layer(rank);
            let (_, saved) = batch_norm::forward(&layer.x, layer.parameters(), problem.options(), group).unwrap();
            let g = tensor(g, layer.x.shape(), DType::F64, format);
            let grads = GradGradients { input: Some(&g), ..GradGradients::default() };
            let result =
                batch_norm::double_backward(&layer.x, &layer.dy, layer.weight.as_ref(), &saved, grads).unwrap();
            [values(&result.input), values(&result.grad_output), values(&result.weight.unwrap())]
        };
        let [dx, ddy, dw] = run(&whole, 0, &grad_grad, None);
        let results = ranks(3, |group| {
            let rank = group.member_rank().unwrap();
            run(&split, rank, &part(&grad_grad, &parts[rank]), Some(group))
        });
        let joined = |which: usize| results.iter().flat_map(|result| result[which].clone()).collect::<Vec<_>>();
        for (what, got, expected) in [("dx", joined(0), dx), ("d(dy)", joined(1), ddy)] {
            assert_relative(what, &got, &expected);
        }
        let summed: Vec<f64> = (0..3).map(|c| results.iter().map(|result| result[2][c]).sum()).collect();
        assert_relative("dw", &summed, &dw);
    }
}

/// Equal but for the rounding of sums in another order.
fn assert_relative(what: &str, got: &[f64], expected: &[f64]) {
    let scale = expected.iter().fold(0.0, |scale: f64, value| scale.max(value.abs()));
    for (got, expected) in got.iter().zip(expected) {
        let close = (got - expected).abs() <= 1e-12 * scale;
        assert!(close, "{what}: {got} instead of {expected}");
    }
    assert_eq!(got.len(), expected.len(), "{what}");
}

#[test]
fn a_rank_with_other_channels_is_named_on_every_rank() {
    let shapes: [&[usize]; 2] = [&[2, 3, 2, 2], &[2, 4, 2, 2]];
    let errors = ranks(2, |group| {
        let rank = group.member_rank().unwrap();
        let problem = Problem::new(&[shapes[rank]], DType::F32, MemoryFormat::Contiguous, 67);
        let (layer, before) = (problem.layer(0), problem.layer(0).running());
        let error = layer.step(problem.options(), Some(group)).unwrap_err();
        // Until the group that failed is gone, nothing on its device is trusted.
        group.destroy();
        assert_eq!(layer.running(), before);
        error
    });
    assert!(errors.iter().all(|error| error.code() == Code::Mismatch), "{errors:?}");
}

#[test]
fn threads_of_one_process_may_hold_ranks_of_several_worlds() {
    if place() == Place::CudaNccl {
        // No two communicators may be at work on one GPU at once, as they would be here.
        return;
    }
    let problem = Problem::new(WORLDS[1], DType::F32, MemoryFormat::Contiguous, 71);
    let worlds = join_all(2, |_| problem.run());
    assert_eq!(worlds[0], worlds[1]);
}

#[test]
fn the_contract_holds_on_fake_gpus_over_nccl() {
    place::run_again_on("nccl");
}

#[test]
fn the_contract_holds_on_fake_gpus_over_tcp() {
    place::run_again_on("tcp");
}
