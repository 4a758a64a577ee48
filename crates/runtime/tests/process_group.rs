//! Collectives on tensors, their order, what is in flight, groups of some ranks, and how groups end.

mod support;

use std::sync::mpsc::channel;
use std::sync::{Barrier, Mutex};
use std::time::{Duration, Instant};
use support::{TIMEOUT, expect, floats, join_all, ranks, row, tensor, values};
use syncbn_core::{Code, Collective, DType, MemoryFormat, ReduceOp};
use syncbn_runtime::process_group::{all_gather, all_reduce, barrier, broadcast, monitored_barrier};
use syncbn_runtime::{ProcessGroup, Tensor, random};

fn rank_of(group: &ProcessGroup) -> usize {
    group.member_rank().unwrap()
}

#[test]
fn every_operation_on_every_type_that_has_it() {
    let expected =
        [(ReduceOp::Sum, 6.0), (ReduceOp::Avg, 2.0), (ReduceOp::Prod, 6.0), (ReduceOp::Min, 1.0), (ReduceOp::Max, 3.0)];
    ranks(3, |group| {
        for dtype in [DType::F32, DType::F64, DType::I32, DType::I64] {
            for (op, result) in expected.into_iter().filter(|(op, _)| dtype.is_float() || *op != ReduceOp::Avg) {
                let data = tensor(&[rank_of(group) as f64 + 1.0; 3], &[3], dtype, MemoryFormat::Contiguous);
                all_reduce(group, &data, op).unwrap().wait().unwrap();
                assert_eq!(values(&data), [result; 3], "{op} of {dtype}");
                assert_eq!(data.storage().version(), 1);
            }
        }
    });
}

#[test]
fn half_types_are_summed_integers_have_no_average_and_the_group_stays_good() {
    ranks(2, |group| {
        let half = row(&[1.5]).to_dtype(DType::F16).unwrap();
        all_reduce(group, &half, ReduceOp::Sum).unwrap().wait().unwrap();
        assert_eq!(values(&half), [3.0]);
        let integer = row(&[1.0]).to_dtype(DType::I64).unwrap();
        expect(all_reduce(group, &integer, ReduceOp::Avg).unwrap().wait(), Code::DType);
        barrier(group).unwrap().wait().unwrap();
    });
}

#[test]
fn gathers_and_broadcasts_keep_shape_and_type() {
    ranks(3, |group| {
        let rank = rank_of(group) as f64;
        let image: Vec<f64> = (0..12).map(|i| 100.0 * rank + f64::from(i)).collect();
        // Sent in one format, received in row-major order.
        let input = tensor(&image, &[1, 3, 2, 2], DType::BF16, MemoryFormat::ChannelsLast);
        let outputs: Vec<Tensor> =
            (0..3).map(|_| tensor(&[0.0; 12], &[1, 3, 2, 2], DType::BF16, MemoryFormat::Contiguous)).collect();
        all_gather(group, &outputs, &input).unwrap().wait().unwrap();
        for (from, output) in outputs.iter().enumerate() {
            let sent = tensor(
                &(0..12).map(|i| 100.0 * from as f64 + f64::from(i)).collect::<Vec<_>>(),
                &[12],
                DType::BF16,
                MemoryFormat::Contiguous,
            );
            assert_eq!(values(output), values(&sent), "from {from}");
        }
        let data = tensor(&[rank, -rank], &[2], DType::I32, MemoryFormat::Contiguous);
        broadcast(group, &data, 1).unwrap().wait().unwrap();
        assert_eq!(values(&data), [1.0, -1.0]);
        let empty = tensor(&[], &[0], DType::F32, MemoryFormat::Contiguous);
        all_gather(group, &[empty.clone(), empty.duplicate().unwrap(), empty.duplicate().unwrap()], &empty)
            .unwrap()
            .wait()
            .unwrap();
    });
}

#[test]
fn wrong_arguments_are_errors_before_any_exchange() {
    ranks(2, |group| {
        // Only one rank makes them: an exchange would meet the other's barrier.
        if rank_of(group) == 0 {
            let (two, three) = (row(&[0.0; 2]), row(&[0.0; 3]));
            expect(all_gather(group, std::slice::from_ref(&two), &two), Code::Argument);
            expect(all_gather(group, &[two.clone(), three.clone()], &two), Code::Shape);
            let double = row(&[0.0; 2]).to_dtype(DType::F64).unwrap();
            expect(all_gather(group, &[two.clone(), double], &two), Code::DType);
            let last = tensor(&[0.0; 12], &[1, 3, 2, 2], DType::F32, MemoryFormat::ChannelsLast);
            expect(all_gather(group, &[last.duplicate().unwrap(), last.duplicate().unwrap()], &last), Code::Argument);
            expect(broadcast(group, &two, 2), Code::Argument);
            // The same tensor twice would be written twice at once.
            expect(all_gather(group, &[three.clone(), three.clone()], &three), Code::InUse);
            assert!(three.read().is_ok(), "a refused call still holds its tensors");
        }
        barrier(group).unwrap().wait().unwrap();
    });
}

#[test]
fn blocking_calls_run_after_queued_ones() {
    ranks(2, |group| {
        let rank = rank_of(group) as f32;
        for _ in 0..50 {
            let (first, second) = (row(&[rank + 1.0; 5000]), row(&[rank; 3]));
            let queued = [all_reduce(group, &first, ReduceOp::Sum).unwrap(), broadcast(group, &second, 1).unwrap()];
            // Out of order, this would be a mismatch of operations on some rank.
            let mut bytes = (rank + 1.0).to_ne_bytes().to_vec();
            Collective::all_reduce(group, &mut bytes, DType::F32, ReduceOp::Prod).unwrap();
            assert!(queued.iter().all(|work| work.completed()), "a blocking call overtook the queue");
            assert_eq!(bytes, 2f32.to_ne_bytes());
            assert_eq!((floats(&first)[4999], floats(&second)), (3.0, vec![1.0; 3]));
        }
    });
}

#[test]
fn a_tensor_in_flight_is_in_use_until_its_work_is_done() {
    let together = Barrier::new(2);
    ranks(2, |group| {
        let data = row(&[1.0, 2.0]);
        if rank_of(group) == 0 {
            let work = all_reduce(group, &data, ReduceOp::Sum).unwrap();
            // Rank 1 has not called yet, so this cannot have finished.
            assert!(!work.completed());
            expect(data.read(), Code::InUse);
            expect(data.write(), Code::InUse);
            expect(all_reduce(group, &data, ReduceOp::Sum), Code::InUse);
            expect(data.to_dtype(DType::F64), Code::InUse);
            together.wait();
            work.wait().unwrap();
            assert!(work.completed());
        } else {
            together.wait();
            all_reduce(group, &data, ReduceOp::Sum).unwrap().wait().unwrap();
        }
        assert_eq!(floats(&data), [2.0, 4.0]);
    });
}

#[test]
fn callbacks_are_told_the_outcome_before_and_after() {
    let together = Barrier::new(2);
    ranks(2, |group| {
        let (sender, receiver) = channel();
        if rank_of(group) == 1 {
            together.wait();
        }
        let work = barrier(group).unwrap();
        let before = sender.clone();
        work.on_complete(move |result| before.send(("before", result.is_ok())).unwrap());
        if rank_of(group) == 0 {
            assert!(receiver.try_recv().is_err(), "told before the other rank came");
            together.wait();
        }
        work.wait().unwrap();
        work.on_complete(move |result| sender.send(("after", result.is_ok())).unwrap());
        let mut told = [receiver.recv_timeout(TIMEOUT).unwrap(), receiver.recv_timeout(TIMEOUT).unwrap()];
        told.sort_unstable();
        assert_eq!(told, [("after", true), ("before", true)]);
    });
}

#[test]
fn subgroups_number_their_members_in_ascending_order() {
    ranks(4, |world| {
        let rank = rank_of(world);
        let odd = world.new_group(&[1, 3], None).unwrap();
        let others = world.new_group(&[3, 0, 2], None).unwrap();
        assert_eq!((odd.size(), odd.ranks(), others.ranks()), (2, &[1, 3][..], &[0, 2, 3][..]));
        assert_eq!(odd.member_rank(), [None, Some(0), None, Some(1)][rank]);
        assert_eq!(others.member_rank(), [Some(0), None, Some(1), Some(2)][rank]);
        let data = row(&[rank as f32]);
        for (group, from, expected) in [(&odd, 3, 3.0), (&others, 2, 2.0)] {
            match group.member_rank() {
                Some(_) => {
                    broadcast(group, &data, from).unwrap().wait().unwrap();
                    assert_eq!(floats(&data), [expected]);
                    expect(broadcast(group, &data, 4), Code::Argument);
                }
                None => {
                    expect(broadcast(group, &data, from), Code::NotInGroup);
                    expect(all_reduce(group, &data, ReduceOp::Sum), Code::NotInGroup);
                    expect(all_gather(group, &[], &data), Code::NotInGroup);
                    expect(barrier(group), Code::NotInGroup);
                    let error = expect(monitored_barrier(group, None), Code::NotInGroup);
                    assert_eq!((error.group(), error.operation()), (Some(group.name()), Some("monitored_barrier")));
                }
            }
        }
        let sum = row(&[1.0]);
        all_reduce(world, &sum, ReduceOp::Sum).unwrap().wait().unwrap();
        assert_eq!(floats(&sum), [4.0]);
    });
}

#[test]
fn a_missing_rank_is_named_at_the_deadline_and_the_tensor_comes_back() {
    let together = Barrier::new(2);
    ranks(2, |world| {
        let short = world.new_group(&[0, 1], Some(Duration::from_millis(300))).unwrap();
        if rank_of(world) == 0 {
            let (data, start) = (row(&[1.0]), Instant::now());
            let work = all_reduce(&short, &data, ReduceOp::Sum).unwrap();
            let error = expect(work.wait(), Code::Timeout);
            assert!(error.message().contains("rank 1"), "{error}");
            assert!(start.elapsed() < TIMEOUT / 2, "{:?}", start.elapsed());
            assert!(data.write().is_ok());
            expect(barrier(&short).unwrap().wait(), Code::GroupPoisoned);
        }
        together.wait();
        // The other group of the same ranks is not affected.
        barrier(world).unwrap().wait().unwrap();
    });
}

#[test]
fn monitored_barrier_names_who_did_not_come() {
    let together = Barrier::new(3);
    ranks(3, |world| {
        let group = world.new_group(&[0, 1, 2], None).unwrap();
        if rank_of(world) == 0 {
            let work = monitored_barrier(&group, Some(Duration::from_millis(200))).unwrap();
            let error = expect(work.wait(), Code::Timeout);
            assert!(error.message().contains('1') && error.message().contains('2'), "{error}");
        }
        together.wait();
    });
}

#[test]
fn abort_ends_a_wait_on_every_rank() {
    let waiting = Barrier::new(2);
    let errors = ranks(2, |world| {
        let group = world.new_group(&[0, 1], None).unwrap();
        let start = Instant::now();
        let error = if rank_of(world) == 0 {
            let work = barrier(&group).unwrap();
            waiting.wait();
            expect(work.wait(), Code::Aborted)
        } else {
            waiting.wait();
            group.abort("the test asked for it");
            expect(barrier(&group).unwrap().wait(), Code::Aborted)
        };
        assert!(start.elapsed() < TIMEOUT / 2);
        error
    });
    assert!(errors[0].message().contains("the test asked for it"), "{}", errors[0]);
}

#[test]
fn destroy_finishes_what_is_queued_and_ends_the_group() {
    ranks(2, |world| {
        let group = world.new_group(&[1, 0], None).unwrap();
        let data = row(&[1.0; 1000]);
        let work = all_reduce(&group, &data, ReduceOp::Sum).unwrap();
        group.destroy();
        assert!(work.completed());
        work.wait().unwrap();
        assert_eq!(floats(&data), [2.0; 1000]);
        expect(barrier(&group).unwrap().wait(), Code::Aborted);
        barrier(world).unwrap().wait().unwrap();
    });
}

#[test]
fn a_call_that_panics_is_an_error_of_its_work_and_the_thread_lives_on() {
    ranks(1, |group| {
        let work = group.submit(|_| panic!("on purpose")).unwrap();
        expect(work.wait(), Code::Internal);
        group.submit(|_| Ok(())).unwrap().wait().unwrap();
    });
}

#[test]
fn calls_of_several_threads_on_one_group_run_one_after_the_other() {
    ranks(2, |group| {
        let seen = Mutex::new(Vec::new());
        // Equal calls, so that any order of the threads is the same program order.
        join_all(3, |_| {
            for _ in 0..20 {
                let data = row(&[1.0; 100]);
                all_reduce(group, &data, ReduceOp::Sum).unwrap().wait().unwrap();
                seen.lock().unwrap().push(floats(&data)[99]);
            }
        });
        assert_eq!(seen.into_inner().unwrap(), [2.0; 60]);
    });
}

#[test]
fn every_thread_has_its_own_generator() {
    let draws = join_all(2, |_| {
        random::manual_seed(7);
        values(&random::random(random::Distribution::Normal, &[33], DType::F32, MemoryFormat::Contiguous).unwrap())
    });
    assert_eq!(draws[0], draws[1]);
    assert_eq!(random::randperm(5).unwrap().len(), 5);
    expect(random::random(random::Distribution::Uniform, &[2], DType::I32, MemoryFormat::Contiguous), Code::DType);
}

#[test]
fn every_thread_waits_for_what_is_queued() {
    ranks(1, |group| {
        let (started, start) = channel();
        group
            .submit(move |_| {
                started.send(()).unwrap();
                std::thread::sleep(Duration::from_millis(100));
                Ok(())
            })
            .unwrap();
        start.recv().unwrap();
        let last = group
            .submit(|_| {
                std::thread::sleep(Duration::from_millis(50));
                Ok(())
            })
            .unwrap();
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    let queue_is_empty = group.run(|_| Ok(last.completed())).unwrap();
                    assert!(queue_is_empty);
                });
            }
        });
    });
}
