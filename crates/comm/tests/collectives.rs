//! What the collectives compute, for odd sizes and 1 to 4 ranks. Inputs have exact sums in any order.

mod common;

use common::{expect, world};
use std::sync::Arc;
use syncbn_comm::Group;
use syncbn_core::collective::{Collective, ReduceOp};
use syncbn_core::dtype::DType;
use syncbn_core::error::Code;

const SIZES: [usize; 6] = [0, 1, 3, 1000, 65_537, 5_000_001];

fn byte(rank: usize, index: usize) -> u8 {
    (rank * 101 + index * 7 + index / 251) as u8
}

fn filled(rank: usize, size: usize) -> Vec<u8> {
    (0..size).map(|index| byte(rank, index)).collect()
}

fn f32_bytes(values: impl IntoIterator<Item = f32>) -> Vec<u8> {
    values.into_iter().flat_map(f32::to_ne_bytes).collect()
}

fn check_all_gather(group: &Group) {
    let (rank, ranks) = (group.rank().unwrap(), group.size());
    for size in SIZES {
        let mut slots = vec![0; ranks * size];
        slots[rank * size..(rank + 1) * size].copy_from_slice(&filled(rank, size));
        group.all_gather(&mut slots).unwrap();
        let expected: Vec<_> = (0..ranks).flat_map(|rank| filled(rank, size)).collect();
        assert!(slots == expected, "{ranks} ranks, {size} bytes");
    }
}

fn check_broadcast(group: &Group) {
    for size in SIZES {
        for src in 0..group.size() {
            let mut data = filled(group.rank().unwrap(), size);
            group.broadcast(&mut data, src).unwrap();
            assert!(data == filled(src, size), "from {src}, {size} bytes");
        }
    }
}

fn check_all_reduce(group: &Group) {
    let (rank, ranks) = (group.rank().unwrap(), group.size());
    for count in SIZES.map(|size| size / 4 + 1) {
        let value = |rank: usize, i: usize| (i % 1000) as f32 + 3.0 * rank as f32;
        let mut data = f32_bytes((0..count).map(|i| value(rank, i)));
        group.all_reduce(&mut data, DType::F32, ReduceOp::Sum).unwrap();
        let sum = |i: usize| (0..ranks).map(|rank| value(rank, i)).sum::<f32>();
        assert!(data == f32_bytes((0..count).map(sum)), "{ranks} ranks, {count} elements");
    }
    group.all_reduce(&mut [], DType::F32, ReduceOp::Max).unwrap();
}

#[test]
fn every_size_on_one_to_four_ranks() {
    for ranks in 1..=4 {
        world(ranks, |world| {
            let group = world.default_group();
            check_all_gather(&group);
            check_broadcast(&group);
            check_all_reduce(&group);
            group.barrier().unwrap();
            group.monitored_barrier(common::TIMEOUT).unwrap();
            world.destroy();
        });
    }
}

#[test]
fn every_operation_and_type_in_one_round_and_in_parts() {
    world(3, |world| {
        let group = world.default_group();
        let rank = world.rank() as i64;
        for count in [5, 30_001] {
            let check = |op, expected: [i64; 5]| {
                for dtype in [DType::F32, DType::F64, DType::I32, DType::I64] {
                    let mut data = numbers(dtype, (0..count).map(|i| 2 * rank - 1 + 3 * (i as i64 % 5)));
                    if op == ReduceOp::Avg && !dtype.is_float() {
                        expect(group.all_reduce(&mut data, dtype, op), Code::DType);
                        continue;
                    }
                    group.all_reduce(&mut data, dtype, op).unwrap();
                    let expected = numbers(dtype, (0..count).map(|i| expected[i % 5]));
                    assert!(data == expected, "{op} {dtype} {count}");
                }
            };
            // Ranks hold −1 + 3k, 1 + 3k, 3 + 3k at the elements with k = index modulo 5.
            check(ReduceOp::Sum, [3, 12, 21, 30, 39]);
            check(ReduceOp::Avg, [1, 4, 7, 10, 13]);
            check(ReduceOp::Prod, [-3, 2 * 4 * 6, 5 * 7 * 9, 8 * 10 * 12, 11 * 13 * 15]);
            check(ReduceOp::Min, [-1, 2, 5, 8, 11]);
            check(ReduceOp::Max, [3, 6, 9, 12, 15]);
        }
    });
}

fn numbers(dtype: DType, values: impl Iterator<Item = i64>) -> Vec<u8> {
    let bytes = |value: i64| match dtype {
        DType::F32 => (value as f32).to_ne_bytes().to_vec(),
        DType::F64 => (value as f64).to_ne_bytes().to_vec(),
        DType::I32 => (value as i32).to_ne_bytes().to_vec(),
        _ => value.to_ne_bytes().to_vec(),
    };
    values.flat_map(bytes).collect()
}

#[test]
fn rounding_is_the_same_on_every_rank_and_for_every_chunking() {
    // Values whose sum depends on the order: in parts and at once they must still agree, bit for bit.
    let value = |rank: usize, i: usize| [1e8_f32, 1.0, -1e8, 0.3][(rank + i) % 4] * (1.0 + i as f32 * 1e-3);
    let count = 400_003;
    let results = world(4, move |world| {
        let group = world.default_group();
        let mine = f32_bytes((0..count).map(|i| value(world.rank(), i)));
        let mut whole = mine.clone();
        group.all_reduce(&mut whole, DType::F32, ReduceOp::Avg).unwrap();
        let mut pieces = mine;
        for piece in pieces.chunks_mut(4 * 10_007) {
            group.all_reduce(piece, DType::F32, ReduceOp::Avg).unwrap();
        }
        assert!(whole == pieces);
        whole
    });
    let expected = (0..count).map(|i| (0..4).map(|rank| value(rank, i)).reduce(|a, b| a + b).unwrap() / 4.0);
    let expected = f32_bytes(expected);
    assert!(results.iter().all(|result| *result == expected));
}

#[test]
fn subgroups_have_their_own_order_and_sockets() {
    world(4, |world| {
        let rank = world.rank();
        let odd = world.new_group(&[3, 1], None).unwrap();
        let even = world.new_group(&[0, 2], None).unwrap();
        let (mine, other) = if rank % 2 == 1 { (&odd, &even) } else { (&even, &odd) };
        assert_eq!(mine.rank(), mine.ranks().iter().position(|&member| member == rank));
        assert_eq!(other.rank(), None);
        let error = expect(other.barrier(), Code::NotInGroup);
        assert_eq!((error.rank(), error.group()), (Some(rank), Some(other.name())));
        check_all_gather(mine);
        // A different number of calls in each group does not disturb the default one.
        (0..rank % 2).for_each(|_| mine.barrier().unwrap());
        check_all_reduce(&world.default_group());
        mine.close();
        expect(mine.barrier(), Code::Aborted);
        world.default_group().barrier().unwrap();
    });
}

#[test]
fn different_lists_of_ranks_are_a_mismatch_everywhere() {
    world(3, |world| {
        let ranks: &[usize] = if world.rank() == 1 { &[0, 1] } else { &[0, 1, 2] };
        let error = expect(world.new_group(ranks, None), Code::Mismatch);
        assert!(error.message().contains("rank 1 called new_group([0, 1])"), "{error}");
        assert!(error.message().contains("called new_group([0, 1, 2])"), "{error}");
        // The world itself is none the worse.
        world.new_group(&[2, 0], None).unwrap();
        world.default_group().barrier().unwrap();
    });
}

#[test]
fn bad_arguments_cost_nothing() {
    world(2, |world| {
        let group = world.default_group();
        expect(group.all_gather(&mut [0; 3]), Code::Argument);
        expect(group.all_reduce(&mut [0; 6], DType::F32, ReduceOp::Sum), Code::Argument);
        expect(group.all_reduce(&mut [0; 3], DType::F16, ReduceOp::Sum), Code::Argument);
        expect(group.all_reduce(&mut [0; 4], DType::I32, ReduceOp::Avg), Code::DType);
        expect(group.broadcast(&mut [0; 4], 2), Code::Argument);
        for ranks in [&[][..], &[0, 0], &[2]] {
            expect(world.new_group(ranks, None), Code::Argument);
        }
        assert!(!group.is_poisoned());
        group.barrier().unwrap();
    });
}

#[test]
fn threads_take_turns_on_one_group() {
    world(2, |world| {
        let group = world.default_group();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..50).for_each(|_| group.barrier().unwrap()));
            }
        });
    });
}

#[test]
fn the_trait_is_the_group() {
    world(2, |world| {
        let group: Arc<dyn Collective<Vec<u8>>> = world.default_group();
        let mut slots = vec![world.rank() as u8 + 1; 2];
        group.all_gather(&mut slots).unwrap();
        assert_eq!(slots, [1, 2]);
        assert_eq!((group.rank(), group.world_size()), (world.rank(), 2));
    });
}
