//! What is special about GPUs: what a step enqueues, captures, ranks that fail while the device waits for them.
//!
//! On fakes, in a process of their own: `on_fake_gpus_…` runs the tests that are marked as ignored.

#[path = "support/problem.rs"]
mod problem;
mod support;

use problem::{ALL, Layer, Problem};
use std::sync::Barrier;
use std::time::{Duration, Instant};
use support::{Place, bytes, expect, free_port, join_all, place, ranks, tensor, values};
use syncbn_comm::{CancelToken, Environment, Group, InitOptions};
use syncbn_core::ops::{BinaryOp, SgdStep};
use syncbn_core::{Code, DType, MemoryFormat, ReduceOp};
use syncbn_cuda::{Counts, Cuda};
use syncbn_runtime::process_group::{self, Backend, ProcessGroupOptions};
use syncbn_runtime::{ProcessGroup, Reducer, Tensor, batch_norm, gpu, ops, reducer};

/// Two ranks, one of them empty.
const SHAPES: [&[usize]; 2] = [&[3, 33, 5, 5], &[0, 33, 4, 4]];

fn problem(seed: u64) -> Problem {
    Problem::new(&SHAPES, DType::F32, MemoryFormat::Contiguous, seed)
}

fn cuda() -> Cuda {
    place::device().cuda().unwrap().clone()
}

/// What `work` enqueues on this rank's device.
fn enqueued(work: impl FnOnce()) -> Counts {
    let before = cuda().counts();
    work();
    let after = cuda().counts();
    Counts {
        launches: after.launches - before.launches,
        host_waits: after.host_waits - before.host_waits,
        uploads: after.uploads - before.uploads,
        downloads: after.downloads - before.downloads,
    }
}

#[test]
#[ignore = "needs GPUs: on_fake_gpus_over_nccl runs it"]
fn a_step_is_two_kernels_and_a_collective_each_way_and_waits_for_nothing() {
    let problem = Problem::new(&[&[3, 33, 5, 5], &[2, 33, 4, 4]], DType::F32, MemoryFormat::ChannelsLast, 1);
    // Filling freed memory would count as work.
    gpu::set_poison_freed(false);
    ranks(2, |group| {
        // Unlike a barrier of threads it ends when the other rank does.
        let together = || group.run(Group::barrier).unwrap();
        let layer = problem.layer(group.member_rank().unwrap());
        // What is made once, the modules, counters and streams, is no part of a step.
        layer.step(problem.options(), Some(group)).unwrap();
        together();
        syncbn_fake_cuda::reset_counters();
        together();
        let two_kernels = Counts { launches: 2, ..Counts::default() };
        let mut forward = None;
        let counts = enqueued(|| {
            let parameters = layer.parameters();
            forward = Some(batch_norm::forward(&layer.x, parameters, problem.options(), Some(group)).unwrap());
        });
        assert_eq!(counts, two_kernels, "forward");
        together();
        // The fakes' own count, over both ranks; the watchdogs only look.
        let counted = syncbn_fake_cuda::counters();
        assert_eq!((counted.collectives, counted.host_waits, counted.memsets), (2, 0, 0), "forward");
        together();
        let (_, saved) = forward.unwrap();
        let counts = enqueued(|| {
            batch_norm::backward(&layer.dy, &layer.x, layer.weight.as_ref(), &saved, ALL).unwrap();
        });
        assert_eq!(counts, two_kernels, "backward");
        together();
        let counted = syncbn_fake_cuda::counters();
        assert_eq!((counted.collectives, counted.host_waits, counted.memsets), (4, 0, 0), "backward");
        gpu::synchronize(&place::device()).unwrap();
    });
    gpu::set_poison_freed(true);
}

/// One training step of a layer whose weight is learnt; the gradient of the weight is made in the step.
fn train(layer: &Layer, problem: &Problem, group: &ProcessGroup) {
    let (_, saved) = batch_norm::forward(&layer.x, layer.parameters(), problem.options(), Some(group)).unwrap();
    let grads = batch_norm::backward(&layer.dy, &layer.x, layer.weight.as_ref(), &saved, ALL).unwrap();
    let (weight, gradient) = (layer.weight.as_ref().unwrap(), grads.weight.unwrap());
    process_group::all_reduce(group, &gradient, ReduceOp::Avg).unwrap().wait().unwrap();
    let step = SgdStep { lr: 0.1, momentum: 0.0, dampening: 0.0, weight_decay: 0.01, nesterov: false, first: false };
    ops::sgd_step(weight, &gradient, None, step).unwrap();
}

#[test]
#[ignore = "needs GPUs: on_fake_gpus_over_nccl runs it"]
fn a_recorded_step_replayed_is_the_same_as_steps() {
    const STEPS: usize = 4;
    let problem = problem(2);
    let state = |layer: &Layer| (bytes(layer.weight.as_ref().unwrap()), layer.running());
    let eager = ranks(2, |group| {
        let layer = problem.layer(group.member_rank().unwrap());
        (0..STEPS).for_each(|_| train(&layer, &problem, group));
        state(&layer)
    });
    let replayed = ranks(2, |group| {
        let (layer, cuda) = (problem.layer(group.member_rank().unwrap()), cuda());
        train(&layer, &problem, group);
        cuda.start_capture().unwrap();
        train(&layer, &problem, group);
        let host = [gpu::synchronize(&place::device()), layer.x.to_device(&syncbn_runtime::Device::Cpu).map(drop)];
        host.into_iter().for_each(|result| drop(expect(result, Code::Capture)));
        let graph = cuda.finish_capture().unwrap();
        (1..STEPS).for_each(|_| graph.replay().unwrap());
        let state = state(&layer);
        drop(graph);
        state
    });
    assert_eq!(eager, replayed);
}

#[test]
#[ignore = "needs GPUs: on_fake_gpus_over_nccl runs it"]
fn replays_read_what_was_copied_to_their_inputs() {
    let (first, second) = (problem(3), problem(4));
    let running = |problem: &Problem, other: Option<&Problem>| {
        ranks(2, |group| {
            let rank = group.member_rank().unwrap();
            let layer = problem.layer(rank);
            let Some(other) = other else {
                let layer = Layer { x: second.layer(rank).x, ..layer };
                batch_norm::forward(&layer.x, layer.parameters(), problem.options(), Some(group)).unwrap();
                return layer.running();
            };
            let cuda = cuda();
            // A step on a layer of its own loads what a capture cannot.
            problem.step(rank, Some(group)).unwrap();
            cuda.start_capture().unwrap();
            let kept = batch_norm::forward(&layer.x, layer.parameters(), problem.options(), Some(group)).unwrap();
            let graph = cuda.finish_capture().unwrap();
            layer.x.copy_from(&other.layer(rank).x).unwrap();
            graph.replay().unwrap();
            let running = layer.running();
            drop(kept);
            running
        })
    };
    assert_eq!(running(&first, Some(&second)), running(&first, None));
}

#[test]
#[ignore = "needs GPUs: on_fake_gpus_over_nccl runs it"]
fn buckets_are_averaged_on_the_device() {
    let names = ["a", "b", "c"].map(String::from).to_vec();
    let lengths = [5, 64, 7];
    let gradient = |rank: usize, index: usize| -> Vec<f64> {
        (0..lengths[index]).map(|i| (rank * 100 + index * 10 + i) as f64).collect()
    };
    ranks(2, |group| {
        let rank = group.member_rank().unwrap();
        let make =
            |index: usize| tensor(&gradient(rank, index), &[lengths[index]], DType::F32, MemoryFormat::Contiguous);
        let parameters: Vec<Tensor> = (0..3).map(make).collect();
        let mut reducer = Reducer::new(group.clone(), names.clone(), &parameters, 256, 64).unwrap();
        for _ in 0..20 {
            // Made on the device, so that buckets are filled behind work that is not done.
            let made = |index: usize| ops::binary_scalar(BinaryOp::Mul, &make(index), 1.0).unwrap();
            let gradients: Vec<Tensor> = (0..3).map(made).collect();
            let counts = enqueued(|| {
                reducer.prepare_for_backward(None).unwrap();
                [2, 0, 1].into_iter().for_each(|i| reducer.mark_variable_ready(i, &gradients[i]).unwrap());
                reducer.finalize_backward(&[0, 1, 2], &gradients).unwrap();
            });
            if place() == Place::CudaNccl {
                assert_eq!(counts, Counts::default(), "nothing but copies on the device");
            }
            for (index, averaged) in gradients.iter().enumerate() {
                let expected: Vec<f64> =
                    gradient(0, index).iter().zip(gradient(1, index)).map(|(a, b)| (a + b) / 2.0).collect();
                assert_eq!(values(averaged), expected, "halves of whole numbers are exact");
            }
        }
    });
}

/// Meets the others at the end of its scope, a panic's too: who fails must not keep them waiting.
struct MeetAtTheEnd<'a>(&'a Barrier);

impl Drop for MeetAtTheEnd<'_> {
    fn drop(&mut self) {
        self.0.wait();
    }
}

/// Worlds of two ranks whose deadline is short.
fn impatient_ranks(timeout: Duration, body: impl Fn(&ProcessGroup, usize) + Sync) {
    let port = free_port();
    join_all(2, |rank| {
        place::set_rank(rank);
        let options = ProcessGroupOptions {
            init_method: format!("tcp://127.0.0.1:{port}"),
            rank: Some(rank),
            world_size: Some(2),
            timeout,
            token: Some("secret".into()),
            backend: Some(Backend::Nccl),
            device: Some(place::device()),
        };
        let group = ProcessGroup::init(&options, CancelToken::default()).unwrap();
        body(&group, rank);
        group.destroy();
    });
}

#[test]
#[ignore = "needs GPUs: on_fake_gpus_over_nccl runs it"]
fn a_rank_that_does_not_come_is_named_within_twice_the_deadline() {
    let (timeout, problem, done) = (Duration::from_secs(2), problem(5), Barrier::new(2));
    impatient_ranks(timeout, |group, rank| {
        let _meet = MeetAtTheEnd(&done);
        if rank == 0 {
            let (layer, start) = (problem.layer(0), Instant::now());
            let before = layer.running();
            let error = layer.step(problem.options(), Some(group)).unwrap_err();
            assert_eq!((error.code(), error.peer()), (Code::Timeout, Some(1)), "{error:?}");
            assert!(start.elapsed() < 2 * timeout, "{:?}", start.elapsed());
            let again = layer.step(problem.options(), Some(group)).unwrap_err();
            assert_eq!(again.code(), Code::Timeout, "the first call that is told gets the error itself: {again:?}");
            let later = layer.step(problem.options(), Some(group)).unwrap_err();
            assert_eq!(later.code(), Code::GroupPoisoned, "{later:?}");
            group.destroy();
            assert_eq!(layer.running(), before, "nothing was committed");
        }
    });
}

#[test]
#[ignore = "needs GPUs: on_fake_gpus_over_nccl runs it"]
fn ranks_that_call_different_collectives_are_told_which() {
    impatient_ranks(Duration::from_secs(10), |group, rank| {
        let data = tensor(&[1.0; 8], &[8], DType::F32, MemoryFormat::Contiguous);
        let start = Instant::now();
        let work = if rank == 0 {
            process_group::all_reduce(group, &data, ReduceOp::Sum)
        } else {
            process_group::broadcast(group, &data, 0)
        };
        work.and_then(|work| work.wait()).unwrap();
        let error = gpu::synchronize(&place::device()).unwrap_err();
        assert!(matches!(error.code(), Code::Mismatch | Code::Aborted), "{error:?}");
        let text = error.message();
        assert!(text.contains("rank 0 called all_reduce") && text.contains("rank 1 called broadcast"), "{text}");
        assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    });
}

/// A recorded step of a layer, and the layer.
fn recorded<'a>(problem: &'a Problem, group: &ProcessGroup) -> (Layer, impl Fn() -> syncbn_core::Result<()> + 'a) {
    let (layer, cuda) = (problem.layer(group.member_rank().unwrap()), cuda());
    train(&layer, problem, group);
    cuda.start_capture().unwrap();
    train(&layer, problem, group);
    let graph = cuda.finish_capture().unwrap();
    (layer, move || graph.replay())
}

#[test]
#[ignore = "needs GPUs: on_fake_gpus_over_nccl runs it"]
fn a_group_is_left_while_a_recording_holds_its_collectives() {
    let problem = problem(7);
    impatient_ranks(Duration::from_secs(5), |group, _| {
        let (_layer, replay) = recorded(&problem, group);
        replay().unwrap();
        gpu::synchronize(&place::device()).unwrap();
        group.run(Group::barrier).unwrap();
        let start = Instant::now();
        group.destroy();
        assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
        let error = expect(replay(), Code::Aborted);
        assert!(error.message().contains("was destroyed"), "{error}");
        gpu::synchronize(&place::device()).unwrap();
    });
}

#[test]
#[ignore = "needs GPUs: on_fake_gpus_over_nccl runs it"]
fn a_rank_that_does_not_replay_is_named_within_twice_the_deadline() {
    let (timeout, problem, done) = (Duration::from_secs(2), problem(8), Barrier::new(2));
    impatient_ranks(timeout, |group, rank| {
        let _meet = MeetAtTheEnd(&done);
        let (layer, replay) = recorded(&problem, group);
        gpu::synchronize(&place::device()).unwrap();
        if rank == 0 {
            let (before, start) = (layer.running(), Instant::now());
            replay().unwrap();
            let error = gpu::synchronize(&place::device()).unwrap_err();
            assert_eq!((error.code(), error.peer()), (Code::Timeout, Some(1)), "{error:?}");
            assert!(error.message().contains("replay"), "{error}");
            assert!(start.elapsed() < 2 * timeout, "{:?}", start.elapsed());
            assert!(replay().is_err(), "the group has failed");
            group.destroy();
            assert_eq!(layer.running(), before, "nothing was committed");
        }
    });
}

#[test]
#[ignore = "needs GPUs: on_fake_gpus_over_nccl runs it"]
fn ranks_of_which_one_replays_and_one_calls_are_told() {
    let problem = problem(9);
    impatient_ranks(Duration::from_secs(10), |group, rank| {
        let (layer, replay) = recorded(&problem, group);
        let start = Instant::now();
        // A step is as many collectives as the recording of one, but is not the same to a rank that replays.
        if rank == 0 {
            replay().unwrap()
        } else {
            drop(layer.step(problem.options(), Some(group)))
        }
        // What both have in common may be done before the watchdogs have compared.
        let error = std::iter::repeat_with(|| gpu::synchronize(&place::device())).find_map(Result::err).unwrap();
        assert!(error.message().contains("a replay of") && error.message().contains("all_gather"), "{error:?}");
        assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    });
}

#[test]
#[ignore = "needs GPUs: on_fake_gpus_over_nccl runs it"]
fn a_group_that_fails_while_it_is_recorded_takes_the_recording_with_it() {
    impatient_ranks(Duration::from_secs(10), |group, _| {
        let data = tensor(&[1.0; 8], &[8], DType::F32, MemoryFormat::Contiguous);
        process_group::all_reduce(group, &data, ReduceOp::Sum).unwrap().wait().unwrap();
        gpu::synchronize(&place::device()).unwrap();
        group.run(Group::barrier).unwrap();
        let cuda = cuda();
        cuda.start_capture().unwrap();
        process_group::all_reduce(group, &data, ReduceOp::Sum).unwrap().wait().unwrap();
        let start = Instant::now();
        // NCCL's abort waits for whatever holds work of the communicator: this recording, too.
        group.abort("enough");
        assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
        expect(cuda.finish_capture(), Code::Capture);
        group.destroy();
        assert_eq!(values(&data), vec![2.0; 8], "the device computes on");
    });
}

#[test]
#[ignore = "needs GPUs: on_fake_gpus_over_nccl runs it"]
fn what_hosts_exchange_cannot_be_recorded() {
    ranks(2, |group| {
        let host = Tensor::full(&syncbn_runtime::Device::Cpu, &[3], 1.0, DType::F32, MemoryFormat::Contiguous).unwrap();
        let version = host.storage().version();
        cuda().start_capture().unwrap();
        expect(process_group::all_reduce(group, &host, ReduceOp::Sum), Code::Capture);
        expect(process_group::barrier(group), Code::Capture);
        expect(group.run(Group::barrier), Code::Capture);
        cuda().abandon_capture();
        assert_eq!((values(&host), host.storage().version()), (vec![1.0; 3], version));
        process_group::barrier(group).unwrap().wait().unwrap();
    });
}

#[test]
#[ignore = "needs GPUs: on_fake_gpus_over_nccl runs it"]
fn recorded_work_may_be_waited_for_again() {
    ranks(2, |group| {
        let data = tensor(&[1.0; 8], &[8], DType::F32, MemoryFormat::Contiguous);
        process_group::all_reduce(group, &data, ReduceOp::Avg).unwrap().wait().unwrap();
        cuda().start_capture().unwrap();
        let work = process_group::all_reduce(group, &data, ReduceOp::Sum).unwrap();
        work.wait().unwrap();
        work.wait().unwrap();
        let graph = cuda().finish_capture().unwrap();
        work.wait().unwrap();
        let (sender, told) = std::sync::mpsc::channel();
        work.on_complete(move |result| sender.send(result).unwrap());
        expect(told.recv().unwrap(), Code::Capture);
        graph.replay().unwrap();
        assert_eq!(values(&data), vec![2.0; 8]);
        drop(graph);
    });
}

#[test]
#[ignore = "needs GPUs: on_fake_gpus_over_nccl runs it"]
fn a_wait_for_the_device_includes_collectives_nobody_has_waited_for() {
    ranks(2, |group| {
        for round in 1..20 {
            let data = tensor(&vec![f64::from(round); 5000], &[5000], DType::F32, MemoryFormat::Contiguous);
            let work = process_group::all_reduce(group, &data, ReduceOp::Sum).unwrap();
            gpu::synchronize(&place::device()).unwrap();
            // Another library may read the memory now.
            assert!(work.wait().is_ok());
            assert_eq!(values(&data)[4999], 2.0 * f64::from(round));
        }
    });
}

#[test]
#[ignore = "needs GPUs: on_fake_gpus_over_nccl runs it"]
fn a_meeting_whose_other_rank_goes_its_own_way_is_cancelled() {
    let (port, cancel, ended) = (free_port(), CancelToken::default(), Barrier::new(2));
    let init_method = format!("tcp://127.0.0.1:{port}");
    join_all(2, |rank| {
        place::set_rank(rank);
        let timeout = Duration::from_secs(20);
        if rank == 1 {
            // Comes to the rendezvous, and has nothing to say about backends.
            let (rank, world_size, token) = (Some(1), Some(2), Some(b"secret".to_vec()));
            let init_method = init_method.clone();
            let options = InitOptions { init_method, rank, world_size, timeout, token, ..InitOptions::default() };
            let world = syncbn_comm::init(&options, &Environment::from_process()).unwrap();
            std::thread::sleep(Duration::from_millis(200));
            cancel.cancel();
            ended.wait();
            world.destroy();
            return;
        }
        let options = ProcessGroupOptions {
            init_method: init_method.clone(),
            rank: Some(0),
            world_size: Some(2),
            timeout,
            token: Some("secret".into()),
            backend: Some(Backend::Nccl),
            device: Some(place::device()),
        };
        let start = Instant::now();
        let error = ProcessGroup::init(&options, cancel.clone()).unwrap_err();
        ended.wait();
        assert_eq!(error.code(), Code::Aborted, "{error:?}");
        assert!(error.message().contains("cancelled"), "{error:?}");
        assert!(start.elapsed() < timeout / 4, "{:?}", start.elapsed());
    });
}

#[test]
#[ignore = "needs GPUs: on_fake_gpus_over_nccl runs it"]
fn aborting_what_is_destroyed_leaves_the_device_alone() {
    impatient_ranks(Duration::from_secs(10), |group, _| {
        let part = group.new_group(&[0, 1], None).unwrap();
        let data = tensor(&[1.0; 8], &[8], DType::F32, MemoryFormat::Contiguous);
        process_group::all_reduce(&part, &data, ReduceOp::Sum).unwrap().wait().unwrap();
        assert!(part.ends_with(group) && !group.ends_with(&part));
        group.destroy();
        // As at the end of a worker that has handles on both.
        group.abort("ended");
        part.abort("ended");
        gpu::synchronize(&place::device()).unwrap();
        assert_eq!(values(&data), [2.0; 8]);
    });
}

#[test]
#[ignore = "needs GPUs: on_fake_gpus_over_nccl runs it"]
fn lists_of_the_same_length_and_other_tensors_are_different_calls() {
    impatient_ranks(Duration::from_secs(10), |group, rank| {
        let make = |length: usize| tensor(&vec![1.0; length], &[length], DType::F32, MemoryFormat::Contiguous);
        // Six values on both ranks, cut in two ways.
        let start = Instant::now();
        reducer::broadcast_tensors(group, &[make(2 + rank), make(4 - rank)], 0).unwrap();
        let error = gpu::synchronize(&place::device()).unwrap_err();
        assert!(error.code() == Code::Mismatch && error.message().contains("types, sizes and sources"), "{error:?}");
        assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    });
}

#[test]
#[ignore = "needs GPUs: on_fake_gpus_over_nccl runs it"]
fn tensors_on_other_devices_are_refused_before_anything_is_exchanged() {
    let problem = problem(6);
    ranks(2, |group| {
        let rank = group.member_rank().unwrap();
        place::set_rank(rank + 2);
        let elsewhere = problem.layer(rank);
        place::set_rank(rank);
        let error = expect(elsewhere.step(problem.options(), Some(group)), Code::Device);
        assert!(error.message().contains(&format!("cuda:{rank}")), "{error}");
        let mixed = Layer { weight: elsewhere.weight, ..problem.layer(rank) };
        expect(mixed.step(problem.options(), Some(group)), Code::Device);
        problem.step(rank, Some(group)).unwrap();
    });
}

#[test]
fn on_fake_gpus_over_nccl() {
    place::run_ignored_on("nccl");
}
