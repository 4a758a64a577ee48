//! Casts and copies with other strides.

use crate::harness::{Side, Values, both, code, cuda};
use syncbn_core::ops::Restride;
use syncbn_core::{Code, DType, Ops};

#[test]
fn casts_between_all_types_are_the_cpus() {
    for (from, to) in DType::ALL.into_iter().flat_map(|from| DType::ALL.map(|to| (from, to))) {
        for len in [0, 1, 300] {
            let x = Values::random(from, 1, len);
            let mut y = Values::unwritten(to, len);
            both!(d => d.copy(d.input(&x), d.output(&mut y)));
            y.assert_same();
        }
    }
}

#[test]
fn casts_saturate_and_make_zero_of_nan() {
    let extremes = [
        f64::NAN,
        f64::INFINITY,
        f64::NEG_INFINITY,
        2147483647.0,
        2147483648.0,
        -2147483648.0,
        -2147483649.5,
        9.3e18,
        -9.3e18,
        9.2e18,
        1e39,
        70000.0,
        -65504.0,
        0.1,
        -0.9,
        1e-8,
        -0.0,
    ];
    for (from, to) in DType::ALL.into_iter().flat_map(|from| DType::ALL.map(|to| (from, to))) {
        let x = Values::of(from, &extremes);
        let mut y = Values::unwritten(to, extremes.len());
        both!(d => d.copy(d.input(&x), d.output(&mut y)));
        y.assert_same();
    }
}

/// Row-major strides of `sizes`, each put where `order` says.
fn strides(sizes: &[usize], order: &[usize]) -> Vec<usize> {
    let mut strides = vec![0; sizes.len()];
    let mut step = 1;
    for &d in order.iter().rev() {
        strides[d] = step;
        step *= sizes[d];
    }
    strides
}

#[track_caller]
fn check(layout: &Restride) {
    let reach = |strides: &[usize]| {
        let steps = layout.shape.iter().zip(strides).map(|(size, stride)| (size - 1) * stride);
        if layout.shape.contains(&0) { 0 } else { steps.sum::<usize>() + 1 }
    };
    for dtype in DType::ALL {
        let x = Values::random(dtype, 1, reach(&layout.input));
        let mut y = Values::unwritten(dtype, reach(&layout.output));
        both!(d => d.restride(d.input(&x), layout, d.output(&mut y)));
        y.assert_same();
    }
}

#[test]
fn memory_formats_change_into_each_other() {
    let (contiguous, last) = ([0, 1, 2, 3], [0, 2, 3, 1]);
    for shape in [[2, 3, 5, 7], [3, 33, 9, 5], [1, 64, 8, 8], [2, 8, 1, 40], [70, 9, 3, 3], [2, 1, 6, 6]] {
        for (from, to) in [(contiguous, last), (last, contiguous), (last, last)] {
            check(&Restride { shape: shape.to_vec(), input: strides(&shape, &from), output: strides(&shape, &to) });
        }
    }
}

#[test]
fn transpositions_of_many_dimensions() {
    let shape = [3, 10, 4, 11, 2];
    for order in [[4, 3, 2, 1, 0], [1, 0, 3, 2, 4], [0, 1, 2, 4, 3], [3, 0, 1, 2, 4]] {
        let (dense, other) = (strides(&shape, &[0, 1, 2, 3, 4]), strides(&shape, &order));
        check(&Restride { shape: shape.to_vec(), input: other.clone(), output: dense.clone() });
        check(&Restride { shape: shape.to_vec(), input: dense, output: other });
    }
}

#[test]
fn more_positions_than_blocks_are_walked_over() {
    check(&Restride { shape: vec![1030, 8, 9], input: vec![72, 1, 8], output: vec![72, 9, 1] });
    let len = (1 << 22) + 77;
    let x = Values::random(DType::I32, 1, len);
    let mut y = Values::unwritten(DType::I64, len);
    both!(d => d.copy(d.input(&x), d.output(&mut y)));
    y.assert_same();
}

#[test]
fn broadcasts_repeat_and_scalars_are_copied() {
    check(&Restride { shape: vec![4, 5, 6], input: vec![0, 6, 1], output: vec![30, 6, 1] });
    check(&Restride { shape: vec![4, 5, 6], input: vec![0, 1, 0], output: vec![30, 6, 1] });
    check(&Restride { shape: vec![9, 16], input: vec![0, 1], output: vec![16, 1] });
    check(&Restride { shape: vec![], input: vec![], output: vec![] });
    check(&Restride { shape: vec![1, 1], input: vec![3, 0], output: vec![1, 1] });
    check(&Restride {
        shape: vec![2; 8],
        input: vec![1, 4, 16, 64, 128, 32, 8, 2],
        output: strides(&[2; 8], &[0, 1, 2, 3, 4, 5, 6, 7]),
    });
}

#[test]
fn nothing_is_copied_of_empty_tensors() {
    let cuda = cuda();
    let x = Values::random(DType::F32, 1, 0);
    let mut y = Values::unwritten(DType::F32, 0);
    let layout = Restride { shape: vec![3, 0, 2], input: vec![0, 2, 1], output: vec![0, 2, 1] };
    cuda.restride(cuda.input(&x), &layout, cuda.output(&mut y)).unwrap();
}

#[test]
fn copies_that_reach_beyond_memory_are_errors() {
    let cuda = cuda();
    let (x, other) = (Values::random(DType::F32, 1, 11), Values::random(DType::F64, 1, 12));
    let mut y = Values::unwritten(DType::F32, 12);
    let layout = Restride { shape: vec![3, 4], input: vec![1, 3], output: vec![4, 1] };
    assert_eq!(code(cuda.restride(cuda.input(&x), &layout, cuda.output(&mut y))), Code::Shape);
    assert_eq!(code(cuda.restride(cuda.input(&other), &layout, cuda.output(&mut y))), Code::DType);
    assert_eq!(code(cuda.copy(cuda.input(&x), cuda.output(&mut y))), Code::Shape);
    let long = Restride { shape: vec![2; 9], input: vec![1; 9], output: (0..9).map(|d| 3 << d).collect() };
    let mut z = Values::unwritten(DType::F32, 3 << 9);
    assert_eq!(code(cuda.restride(cuda.input(&x), &long, cuda.output(&mut z))), Code::Shape);
}
