//! The gradient reducer over real process groups.

mod support;

use support::{expect, floats, ranks, row, tensor, values};
use syncbn_core::generator::Generator;
use syncbn_core::{Code, DType, MemoryFormat};
use syncbn_runtime::reducer::{broadcast_tensors, verify_parameters};
use syncbn_runtime::{ProcessGroup, Reducer, Tensor};

const SIZES: [usize; 6] = [7, 1, 130, 33, 2, 65];
const MEBIBYTE: usize = 1 << 20;

fn names() -> Vec<String> {
    (0..SIZES.len()).map(|index| format!("layer{index}.weight")).collect()
}

/// The gradients of one rank and step: sums of them depend on the order of their terms.
fn gradients(rank: usize, step: usize) -> Vec<Vec<f32>> {
    let mut random = Generator::new((100 * step + rank) as u64);
    let scale = [1e-4f32, 1e4, 1.0][rank % 3];
    SIZES.iter().map(|&size| random.randn_f32(size).iter().map(|x| x * scale).collect()).collect()
}

/// Σ over ranks, in rank order in float32, divided once.
fn average(size: usize, step: usize, index: usize) -> Vec<f32> {
    let all: Vec<Vec<f32>> = (0..size).map(|rank| gradients(rank, step).swap_remove(index)).collect();
    let sum = |i: usize| all.iter().map(|of_rank| of_rank[i]).reduce(|sum, next| sum + next).unwrap();
    (0..SIZES[index]).map(|i| sum(i) / size as f32).collect()
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

fn parameters() -> Vec<Tensor> {
    SIZES.iter().map(|&size| row(&vec![0.0; size])).collect()
}

fn reducer(group: &ProcessGroup, cap: usize, first: usize) -> Reducer {
    Reducer::new(group.clone(), names(), &parameters(), cap, first).unwrap()
}

/// One backward pass in which gradients become ready in `order`; the averages.
fn reduce(reducer: &mut Reducer, mine: &[Vec<f32>], order: &[usize]) -> Vec<Vec<f32>> {
    let tensors: Vec<Tensor> = mine.iter().map(|gradient| row(gradient)).collect();
    let indices: Vec<usize> = (0..tensors.len()).collect();
    reducer.prepare_for_backward(None).unwrap();
    order.iter().for_each(|&index| reducer.mark_variable_ready(index, &tensors[index]).unwrap());
    reducer.finalize_backward(&indices, &tensors).unwrap();
    tensors.iter().map(floats).collect()
}

#[test]
fn averages_are_the_rank_order_sum_divided_once_whatever_the_buckets() {
    for size in [1, 2, 3, 4] {
        for (cap, first) in [(MEBIBYTE, MEBIBYTE), (4, 4), (140, 8), (600, 600), (280, 4)] {
            ranks(size, |group| {
                let rank = group.member_rank().unwrap();
                let mut reducer = reducer(group, cap, first);
                for step in 0..2 {
                    // Every rank's gradients become ready in an order of its own.
                    let order: Vec<usize> = (0..SIZES.len()).map(|i| (i * 5 + rank + step) % SIZES.len()).collect();
                    let reduced = reduce(&mut reducer, &gradients(rank, step), &order);
                    for (index, got) in reduced.iter().enumerate() {
                        let expected = average(size, step, index);
                        assert_eq!(bits(got), bits(&expected), "{size} ranks, caps {cap} and {first}, {index}");
                    }
                }
            });
        }
    }
}

#[test]
fn float64_parameters_are_reduced_in_float64() {
    let mine = |rank: usize| vec![1.0 + 2f64.powi(-40) * rank as f64, -3.0];
    let reduced = ranks(3, |group| {
        let double = |values: &[f64]| tensor(values, &[values.len()], DType::F64, MemoryFormat::Contiguous);
        let parameters = [row(&[0.0; 3]), double(&[0.0; 2])];
        let names = vec!["single".to_string(), "double".to_string()];
        let mut reducer = Reducer::new(group.clone(), names, &parameters, MEBIBYTE, MEBIBYTE).unwrap();
        let rank = group.member_rank().unwrap();
        let gradients = [row(&[rank as f32; 3]), double(&mine(rank))];
        reducer.prepare_for_backward(None).unwrap();
        reducer.mark_variable_ready(0, &gradients[0]).unwrap();
        reducer.mark_variable_ready(1, &gradients[1]).unwrap();
        reducer.finalize_backward(&[0, 1], &gradients).unwrap();
        (floats(&gradients[0]), values(&gradients[1]))
    });
    let first = (mine(0)[0] + mine(1)[0] + mine(2)[0]) / 3.0;
    assert!(reduced.iter().all(|got| got == &(vec![1.0; 3], vec![first, -3.0])), "{reduced:?}");
}

#[test]
fn missing_gradients_are_named_and_the_reducer_recovers() {
    ranks(2, |group| {
        let rank = group.member_rank().unwrap();
        let mut reducer = reducer(group, 200, 8);
        let tensors: Vec<Tensor> = gradients(rank, 0).iter().map(|gradient| row(gradient)).collect();
        reducer.prepare_for_backward(None).unwrap();
        [5, 3, 2, 0].iter().for_each(|&index| reducer.mark_variable_ready(index, &tensors[index]).unwrap());
        let error = expect(reducer.finalize_backward(&[], &[]), Code::UnusedParameters);
        assert!(error.message().contains("layer1.weight, layer4.weight;"), "{error}");
        assert!(!error.message().contains("layer0"), "{error}");
        // The next pass starts afresh.
        let reduced = reduce(&mut reducer, &gradients(rank, 1), &[0, 1, 2, 3, 4, 5]);
        assert_eq!(bits(&reduced[2]), bits(&average(2, 1, 2)));
    });
}

#[test]
fn a_gradient_twice_or_of_another_size_or_type_is_an_error() {
    ranks(1, |group| {
        let mut reducer = reducer(group, MEBIBYTE, MEBIBYTE);
        reducer.prepare_for_backward(None).unwrap();
        reducer.mark_variable_ready(1, &row(&[1.0])).unwrap();
        let error = expect(reducer.mark_variable_ready(1, &row(&[1.0])), Code::UnusedParameters);
        assert!(error.message().contains("layer1.weight was marked ready twice"), "{error}");
        expect(reducer.mark_variable_ready(0, &row(&[1.0; 6])), Code::Shape);
        expect(reducer.mark_variable_ready(0, &row(&[1.0; 7]).to_dtype(DType::F64).unwrap()), Code::DType);
        expect(reducer.mark_variable_ready(6, &row(&[1.0])), Code::Internal);
    });
}

#[test]
fn gradients_between_passes_are_left_alone() {
    ranks(2, |group| {
        // Without prepare_for_backward nothing is collected: ranks may do this different numbers of times.
        let mut reducer = reducer(group, 8, 8);
        for _ in 0..group.member_rank().unwrap() {
            reducer.mark_variable_ready(0, &row(&[1.0; 7])).unwrap();
        }
        let reduced = reduce(&mut reducer, &gradients(group.member_rank().unwrap(), 0), &[5, 4, 3, 2, 1, 0]);
        assert_eq!(bits(&reduced[0]), bits(&average(2, 0, 0)));
    });
}

#[test]
fn unused_parameters_take_part_with_zeros_and_every_rank_learns_who_uses_what() {
    let uses = [[true, true, false, false, true, false], [true, false, false, true, true, false]];
    for (cap, first) in [(MEBIBYTE, MEBIBYTE), (4, 4), (140, 8)] {
        ranks(2, |group| {
            let rank = group.member_rank().unwrap();
            let (mut reducer, used) = (reducer(group, cap, first), uses[rank]);
            let tensors: Vec<Tensor> = gradients(rank, 3).iter().map(|gradient| row(gradient)).collect();
            let globally = reducer.prepare_for_backward(Some(&used)).unwrap();
            assert_eq!(globally, [true, true, false, true, true, false]);
            (0..6).filter(|&i| used[i]).for_each(|i| reducer.mark_variable_ready(i, &tensors[i]).unwrap());
            let indices: Vec<usize> = (0..6).filter(|&i| globally[i]).collect();
            let wanted: Vec<Tensor> = indices.iter().map(|&i| tensors[i].clone()).collect();
            reducer.finalize_backward(&indices, &wanted).unwrap();
            for (index, got) in tensors.iter().map(floats).enumerate() {
                let of = |rank: usize| gradients(rank, 3).swap_remove(index);
                let share = |rank: usize, i: usize| if uses[rank][index] { of(rank)[i] } else { 0.0 };
                let expected: Vec<f32> = match globally[index] {
                    true => (0..SIZES[index]).map(|i| (share(0, i) + share(1, i)) / 2.0).collect(),
                    // Nobody's: what was there stays.
                    false => of(rank),
                };
                assert_eq!(got, expected, "caps {cap} and {first}, parameter {index} on rank {rank}");
            }
        });
    }
}

#[test]
fn a_wrong_number_of_flags_is_an_error_before_any_exchange() {
    ranks(2, |group| {
        if group.member_rank() == Some(0) {
            expect(reducer(group, 8, 8).prepare_for_backward(Some(&[true])), Code::Argument);
        }
        group.run(syncbn_comm::Group::barrier).unwrap();
    });
}

#[test]
fn parameters_that_differ_are_named_on_all_ranks() {
    type Change = fn(&mut Vec<String>, &mut Vec<Tensor>);
    let changes: [(Change, &str, &str); 5] = [
        (|names, _| names[1] = "other".into(), "parameter 1 differs", "rank 1 has other [1] float32"),
        (|_, tensors| tensors[3] = row(&[0.0; 34]), "parameter 3 differs", "rank 1 has layer3.weight [34]"),
        (
            |_, tensors| tensors[2] = tensors[2].reshape(&[13, 10]).unwrap(),
            "parameter 2 differs",
            "rank 1 has layer2.weight [13, 10]",
        ),
        (|_, tensors| tensors[0] = tensors[0].to_dtype(DType::F64).unwrap(), "parameter 0 differs", "[7] float64"),
        (|names, tensors| drop((names.pop(), tensors.pop())), "parameter 5 differs", "rank 1 has nothing"),
    ];
    ranks(3, |group| {
        for (change, first, second) in changes {
            let (mut names, mut tensors) = (names(), parameters());
            if group.member_rank() == Some(1) {
                change(&mut names, &mut tensors);
            }
            let error = expect(verify_parameters(group, &names, &tensors, &[], None), Code::ParameterMismatch);
            assert_eq!(error.peer(), Some(1), "{error}");
            assert!(error.message().contains(first) && error.message().contains(second), "{error}");
        }
        verify_parameters(group, &names(), &parameters(), &[], None).unwrap();
        verify_parameters(group, &[], &[], &[], None).unwrap();
    });
}

#[test]
fn tensors_of_rank_0_replace_those_of_the_others_without_a_new_version() {
    let all = ranks(3, |group| {
        let rank = group.member_rank().unwrap() as f64;
        let tensors = [
            tensor(&[rank; 6], &[1, 2, 1, 3], DType::F32, MemoryFormat::ChannelsLast),
            tensor(&[rank + 1.0], &[], DType::I64, MemoryFormat::Contiguous),
            tensor(&[], &[0], DType::F64, MemoryFormat::Contiguous),
            tensor(&[0.25 * rank, -1.5], &[2], DType::BF16, MemoryFormat::Contiguous),
        ];
        broadcast_tensors(group, &tensors, 2).unwrap();
        assert!(tensors.iter().all(|tensor| tensor.storage().version() == 0));
        tensors.map(|tensor| values(&tensor))
    });
    assert!(all.iter().all(|got| got == &[vec![2.0; 6], vec![3.0], vec![], vec![0.5, -1.5]]), "{all:?}");
}

#[test]
fn integers_and_strangers_are_refused() {
    ranks(2, |group| {
        let integer = row(&[1.0]).to_dtype(DType::I32).unwrap();
        let made = |group: &ProcessGroup, parameter: &Tensor| {
            Reducer::new(group.clone(), vec!["p".into()], std::slice::from_ref(parameter), 4, 4)
        };
        expect(made(group, &integer), Code::DType);
        let alone = group.new_group(&[1], None).unwrap();
        if group.member_rank() == Some(0) {
            expect(made(&alone, &row(&[1.0])), Code::NotInGroup);
            expect(verify_parameters(&alone, &[], &[], &[], None), Code::NotInGroup);
            expect(broadcast_tensors(&alone, &[], 1), Code::NotInGroup);
        }
    });
}
