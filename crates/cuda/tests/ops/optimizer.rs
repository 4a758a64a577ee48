//! Updates of parameters.

use crate::harness::{Side, Values, both, code, cuda};
use syncbn_core::ops::{AdamWStep, SgdStep};
use syncbn_core::{Code, DType, Ops};

const FLOATS: [DType; 2] = [DType::F32, DType::F64];
const SGD: SgdStep =
    SgdStep { lr: 0.1, momentum: 0.9, dampening: 0.2, weight_decay: 0.01, nesterov: false, first: false };
const ADAMW: AdamWStep = AdamWStep { lr: 1e-3, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.01, step: 1 };

#[test]
fn sgd_is_the_cpus() {
    let forms = [
        SGD,
        SgdStep { first: true, ..SGD },
        SgdStep { nesterov: true, dampening: 0.0, ..SGD },
        SgdStep { weight_decay: 0.0, ..SGD },
    ];
    for (dtype, step) in FLOATS.into_iter().flat_map(|dtype| forms.map(|step| (dtype, step))) {
        for len in [0, 1, 1001] {
            let g = Values::random(dtype, 1, len);
            let (mut p, mut v) = (Values::random(dtype, 2, len), Values::random(dtype, 3, len));
            both!(d => d.sgd_step(d.output(&mut p), d.input(&g), Some(d.output(&mut v)), step));
            p.assert_rounded(1);
            v.assert_rounded(1);
            let mut p = Values::random(dtype, 2, len);
            both!(d => d.sgd_step(d.output(&mut p), d.input(&g), None, step));
            p.assert_rounded(1);
        }
    }
}

#[test]
fn no_weight_decay_keeps_infinite_parameters() {
    let step = SgdStep { weight_decay: 0.0, ..SGD };
    let g = Values::of(DType::F32, &[1.0, 1.0]);
    let mut p = Values::of(DType::F32, &[f64::INFINITY, f64::NAN]);
    both!(d => d.sgd_step(d.output(&mut p), d.input(&g), None, step));
    p.assert_same();
    assert_eq!(p.results()[0], f64::INFINITY);
}

/// A second moment is never negative.
fn squares(dtype: DType, len: usize) -> Values {
    let values: Vec<f64> = (0..len).map(|i| (i % 7) as f64 * 0.3).collect();
    Values::of(dtype, &values)
}

#[test]
fn adamw_is_the_cpus_for_steps_from_the_host_and_from_the_device() {
    for (dtype, step) in FLOATS.into_iter().flat_map(|dtype| [1, 2, 1000].map(|step| (dtype, step))) {
        let step = AdamWStep { step, ..ADAMW };
        for len in [0, 1, 1001] {
            let g = Values::random(dtype, 1, len);
            let start = || (Values::random(dtype, 2, len), Values::random(dtype, 3, len), squares(dtype, len));
            let (mut p, mut m, mut v) = start();
            both!(d => d.adamw_step(d.output(&mut p), d.input(&g), d.output(&mut m), d.output(&mut v), step));
            [&p, &m, &v].iter().for_each(|values| values.assert_rounded(1));
            let cuda = cuda();
            let (mut p2, mut m2, mut v2) = start();
            let counter = Values::of(DType::I64, &[step.step as f64]);
            let unused = AdamWStep { step: 0, ..step };
            let (out_p, out_m, out_v) = (cuda.output(&mut p2), cuda.output(&mut m2), cuda.output(&mut v2));
            cuda.adamw_step_from(out_p, cuda.input(&g), out_m, out_v, unused, cuda.input(&counter)).unwrap();
            let (expected, got) = (p.results(), p2.results());
            let allowed = if dtype == DType::F32 { 1e-6 } else { 1e-14 };
            assert!(expected.iter().zip(&got).all(|(a, b)| (a - b).abs() <= allowed * a.abs().max(1.0)));
            assert_eq!((m.results(), v.results()), (m2.results(), v2.results()));
        }
    }
}

#[test]
fn a_counter_counts() {
    let cuda = cuda();
    let mut counter = Values::of(DType::I64, &[41.0]);
    let once = cuda.output(&mut counter);
    cuda.increment(once).unwrap();
    assert_eq!(counter.latest(), [42.0]);
    let mut wrong = Values::of(DType::I32, &[1.0]);
    assert_eq!(code(cuda.increment(cuda.output(&mut wrong))), Code::DType);
    let mut nothing = Values::of(DType::I64, &[]);
    assert_eq!(code(cuda.increment(cuda.output(&mut nothing))), Code::Shape);
}

#[test]
fn operands_of_other_types_and_sizes_are_errors() {
    let cuda = cuda();
    let (short, wide) = (Values::random(DType::F32, 1, 3), Values::random(DType::F64, 1, 4));
    let mut p = Values::random(DType::F32, 2, 4);
    assert_eq!(code(cuda.sgd_step(cuda.output(&mut p), cuda.input(&short), None, SGD)), Code::Shape);
    assert_eq!(code(cuda.sgd_step(cuda.output(&mut p), cuda.input(&wide), None, SGD)), Code::DType);
}
