//! Arithmetic on each element.

use crate::harness::{Side, Values, both, code, cuda};
use syncbn_core::ops::{Along, BinaryOp, Broadcast};
use syncbn_core::{Code, DType, Ops};

const BINARY: [BinaryOp; 4] = [BinaryOp::Add, BinaryOp::Sub, BinaryOp::Mul, BinaryOp::Div];
const FLOATS: [DType; 2] = [DType::F32, DType::F64];
const HALVES: [DType; 2] = [DType::F16, DType::BF16];
/// Below, at and above what one vector and one block hold.
const LENGTHS: [usize; 6] = [0, 1, 3, 8, 257, 2049];
const INFINITE: [f64; 7] = [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, -0.0, 0.0, 1e-40, -3.0];

fn dense(len: usize) -> Broadcast {
    Broadcast { shape: vec![len], a: vec![1], b: vec![1] }
}

#[test]
fn fill_writes_every_element_of_every_type() {
    for dtype in DType::ALL {
        for len in LENGTHS {
            for value in [0.0, -2.5, 1e30] {
                let mut y = Values::unwritten(dtype, len);
                both!(d => d.fill(d.output(&mut y), value));
                y.assert_same();
            }
        }
    }
}

#[test]
fn fill_starts_at_any_element() {
    let cuda = cuda();
    let buffer = cuda.tensor_buffer(DType::F16, &[100]).unwrap();
    cuda.upload(&[0; 200], buffer.slice_mut(DType::F16)).unwrap();
    // SAFETY: elements 3..78 of the buffer, which outlives the view.
    let part = unsafe { syncbn_cuda::CudaSliceMut::new(buffer.pointer() + 6, 75, DType::F16) };
    cuda.fill(part, 1.0).unwrap();
    let bytes = buffer.to_host(&|| Ok(())).unwrap();
    let words: Vec<u16> = bytes.chunks(2).map(|pair| u16::from_ne_bytes([pair[0], pair[1]])).collect();
    assert!((0..100).all(|i| words[i] == if (3..78).contains(&i) { 0x3c00 } else { 0 }));
}

#[test]
fn dense_arithmetic_is_the_cpus() {
    for (dtype, op) in FLOATS.into_iter().flat_map(|dtype| BINARY.map(|op| (dtype, op))) {
        for len in LENGTHS {
            let (a, b) = (Values::random(dtype, 1, len), Values::random(dtype, 2, len));
            let (mut y, mut z) = (Values::unwritten(dtype, len), Values::unwritten(dtype, len));
            both!(d => d.binary(op, d.input(&a), d.input(&b), &dense(len), d.output(&mut y)));
            y.assert_same();
            both!(d => d.binary_scalar(op, d.input(&a), 0.37, d.output(&mut z)));
            z.assert_same();
        }
    }
}

#[test]
fn arithmetic_broadcasts() {
    let layouts: [(&[usize], &[usize], &[usize]); 6] = [
        (&[3, 5, 7], &[35, 7, 1], &[0, 1, 0]),
        (&[3, 5, 7], &[0, 0, 0], &[35, 7, 1]),
        (&[4, 6], &[0, 1], &[1, 0]),
        (&[2, 3, 4, 5], &[60, 1, 15, 3], &[0, 20, 5, 1]),
        (&[2, 2, 2, 2, 2, 2, 2, 2], &[1, 4, 16, 64, 256, 0, 0, 0], &[0, 2, 0, 8, 0, 1, 32, 64]),
        (&[1], &[0], &[0]),
    ];
    for (shape, a_strides, b_strides) in layouts {
        let reach = |strides: &[usize]| 1 + shape.iter().zip(strides).map(|(n, s)| (n - 1) * s).sum::<usize>();
        let layout = Broadcast { shape: shape.to_vec(), a: a_strides.to_vec(), b: b_strides.to_vec() };
        for (dtype, op) in FLOATS.into_iter().flat_map(|dtype| BINARY.map(|op| (dtype, op))) {
            let (a, b) = (Values::random(dtype, 3, reach(a_strides)), Values::random(dtype, 4, reach(b_strides)));
            let mut y = Values::unwritten(dtype, shape.iter().product());
            both!(d => d.binary(op, d.input(&a), d.input(&b), &layout, d.output(&mut y)));
            y.assert_same();
        }
    }
}

#[test]
fn broadcasting_to_nothing_launches_nothing() {
    let (a, b) = (Values::random(DType::F32, 1, 0), Values::random(DType::F32, 2, 3));
    let mut y = Values::unwritten(DType::F32, 0);
    let layout = Broadcast { shape: vec![0, 3], a: vec![3, 1], b: vec![0, 1] };
    let cuda = cuda();
    cuda.binary(BinaryOp::Add, cuda.input(&a), cuda.input(&b), &layout, cuda.output(&mut y)).unwrap();
}

#[test]
fn in_place_arithmetic_is_the_cpus() {
    for dtype in FLOATS {
        for len in LENGTHS {
            let b = Values::random(dtype, 2, len);
            let (mut y, mut z) = (Values::random(dtype, 1, len), Values::random(dtype, 3, len));
            both!(d => d.add_in_place(d.output(&mut y), d.input(&b)));
            y.assert_same();
            both!(d => d.scale_in_place(d.output(&mut z), -1.7));
            z.assert_same();
        }
    }
}

#[test]
fn bias_is_added_along_its_dimension() {
    for dtype in FLOATS {
        for (outer, size, inner) in [(3, 5, 7), (4, 6, 1), (1, 1, 9), (0, 4, 2), (2, 3, 0)] {
            let bias = Values::random(dtype, 5, size);
            let mut y = Values::random(dtype, 6, outer * size * inner);
            both!(d => d.add_bias(d.output(&mut y), d.input(&bias), Along { outer, size, inner }));
            y.assert_same();
        }
    }
}

#[test]
fn relu_keeps_nan_and_its_gradient_passes_there() {
    for dtype in FLOATS {
        for len in LENGTHS {
            let (x, dy) = (Values::random(dtype, 1, len), Values::random(dtype, 2, len));
            let (mut y, mut dx) = (Values::unwritten(dtype, len), Values::unwritten(dtype, len));
            both!(d => d.relu(d.input(&x), d.output(&mut y)));
            y.assert_same();
            both!(d => d.relu_backward(d.input(&dy), d.input(&y), d.output(&mut dx)));
            dx.assert_same();
        }
        let (x, dy) = (Values::of(dtype, &INFINITE), Values::random(dtype, 2, INFINITE.len()));
        let (mut y, mut dx) = (Values::unwritten(dtype, INFINITE.len()), Values::unwritten(dtype, INFINITE.len()));
        both!(d => d.relu(d.input(&x), d.output(&mut y)));
        y.assert_same();
        assert!(y.results()[0].is_nan());
        both!(d => d.relu_backward(d.input(&dy), d.input(&y), d.output(&mut dx)));
        dx.assert_same();
        assert_eq!(dx.results()[0], dy.results()[0]);
    }
}

/// The CPU has no arithmetic on half types: theirs is float32 arithmetic, rounded once.
#[test]
fn half_types_are_computed_in_float32() {
    for dtype in HALVES {
        let len = 301;
        let (a, b) = (Values::random(dtype, 1, len), Values::random(dtype, 2, len));
        let rounded = |values: Vec<f32>| {
            let values: Vec<f64> = values.into_iter().map(f64::from).collect();
            Values::of(dtype, &values).results()
        };
        let pairs = || a.results().into_iter().zip(b.results()).map(|(a, b)| (a as f32, b as f32));
        let cuda = cuda();
        let mut y = Values::unwritten(dtype, len);
        for op in BINARY {
            let f = |a: f32, b: f32| match op {
                BinaryOp::Add => a + b,
                BinaryOp::Sub => a - b,
                BinaryOp::Mul => a * b,
                BinaryOp::Div => a / b,
            };
            cuda.binary(op, cuda.input(&a), cuda.input(&b), &dense(len), cuda.output(&mut y)).unwrap();
            assert_eq!(y.latest(), rounded(pairs().map(|(a, b)| f(a, b)).collect()), "{dtype} {op:?}");
            cuda.binary_scalar(op, cuda.input(&a), 0.3, cuda.output(&mut y)).unwrap();
            assert_eq!(y.latest(), rounded(pairs().map(|(a, _)| f(a, 0.3)).collect()), "{dtype} {op:?} scalar");
            let repeated = Broadcast { shape: vec![7, 43], a: vec![43, 1], b: vec![1, 0] };
            cuda.binary(op, cuda.input(&a), cuda.input(&b), &repeated, cuda.output(&mut y)).unwrap();
            let (left, right) = (a.results(), b.results());
            let expected = (0..len).map(|i| f(left[i] as f32, right[i / 43] as f32)).collect();
            assert_eq!(y.latest(), rounded(expected), "{dtype} {op:?} broadcast");
        }
        cuda.relu(cuda.input(&a), cuda.output(&mut y)).unwrap();
        assert_eq!(y.latest(), rounded(pairs().map(|(a, _)| a.max(0.0)).collect()));
        cuda.relu_backward(cuda.input(&b), cuda.input(&a), cuda.output(&mut y)).unwrap();
        assert_eq!(y.latest(), rounded(pairs().map(|(a, b)| if a > 0.0 { b } else { 0.0 }).collect()));
    }
}

#[test]
fn what_does_not_fit_is_an_error() {
    let cuda = cuda();
    let (a, short) = (Values::random(DType::F32, 1, 8), Values::random(DType::F32, 1, 7));
    let (whole, wide) = (Values::random(DType::I32, 1, 8), Values::random(DType::F64, 1, 8));
    let mut y = Values::unwritten(DType::F32, 8);
    let mut run =
        |b: &Values| code(cuda.binary(BinaryOp::Add, cuda.input(&a), cuda.input(b), &dense(8), cuda.output(&mut y)));
    assert_eq!(run(&short), Code::Shape);
    assert_eq!(run(&wide), Code::DType);
    let mut whole_y = Values::unwritten(DType::I32, 8);
    assert_eq!(code(cuda.relu(cuda.input(&whole), cuda.output(&mut whole_y))), Code::DType);
    let mut half = Values::random(DType::F16, 1, 8);
    let along = Along { outer: 1, size: 8, inner: 1 };
    let bias = Values::random(DType::F16, 1, 8);
    assert_eq!(code(cuda.add_bias(cuda.output(&mut half), cuda.input(&bias), along)), Code::DType);
}
