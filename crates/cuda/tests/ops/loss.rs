//! softmax and cross entropy.

use crate::harness::{Side, Values, both, cuda};
use syncbn_core::ops::{Along, CrossEntropy, LossReduction};
use syncbn_core::{Code, DType, Ops};

const FLOATS: [DType; 2] = [DType::F32, DType::F64];
const SHAPES: [(usize, usize, usize); 8] =
    [(3, 5, 7), (4, 10, 1), (1, 1000, 1), (2, 33, 20), (1, 1, 1), (700, 3, 1), (0, 3, 2), (2, 0, 3)];
const REDUCTIONS: [LossReduction; 3] = [LossReduction::None, LossReduction::Sum, LossReduction::Mean];
const IGNORED: i64 = -100;

#[test]
fn softmax_and_its_gradient_are_the_cpus() {
    for dtype in FLOATS {
        for ((outer, size, inner), log) in SHAPES.into_iter().flat_map(|shape| [(shape, false), (shape, true)]) {
            let (along, len) = (Along { outer, size, inner }, outer * size * inner);
            let (x, dy) = (Values::random(dtype, 1, len), Values::random(dtype, 2, len));
            let (mut y, mut dx) = (Values::unwritten(dtype, len), Values::unwritten(dtype, len));
            both!(d => d.softmax(d.input(&x), along, log, d.output(&mut y)));
            y.assert_summed(size);
            both!(d => d.softmax_backward(d.input(&dy), d.input(&y), along, log, d.output(&mut dx)));
            dx.assert_summed(size);
        }
    }
}

#[test]
fn softmax_of_what_is_not_finite() {
    let lines: [[f64; 4]; 6] = [
        [1e30, 1.0, -1e30, 1e30],
        [f64::NAN, 1.0, 2.0, 3.0],
        [1.0, f64::INFINITY, 2.0, 3.0],
        [f64::NEG_INFINITY, 1.0, 2.0, 3.0],
        [f64::NEG_INFINITY; 4],
        [3.0, f64::NAN, f64::NAN, 1e5],
    ];
    for (dtype, log) in FLOATS.into_iter().flat_map(|dtype| [(dtype, false), (dtype, true)]) {
        for (outer, inner) in [(6, 1), (1, 6)] {
            let at = |i: usize| if inner == 1 { lines[i / 4][i % 4] } else { lines[i % 6][i / 6] };
            let x = Values::of(dtype, &(0..24).map(at).collect::<Vec<_>>());
            let mut y = Values::unwritten(dtype, 24);
            both!(d => d.softmax(d.input(&x), Along { outer, size: 4, inner }, log, d.output(&mut y)));
            y.assert_rounded(1);
        }
    }
}

/// Targets with every fifth ignored.
fn targets(along: Along) -> Values {
    let count = along.outer * along.inner;
    let target = |i: usize| if i % 5 == 3 { IGNORED as f64 } else { (i * 31 % along.size.max(1)) as f64 };
    Values::of(DType::I64, &(0..count).map(target).collect::<Vec<_>>())
}

#[test]
fn cross_entropy_and_its_gradient_are_the_cpus() {
    for (dtype, reduction) in FLOATS.into_iter().flat_map(|dtype| REDUCTIONS.map(|reduction| (dtype, reduction))) {
        for (outer, size, inner) in [(7, 5, 3), (64, 10, 1), (0, 3, 1), (1, 1, 1), (5, 3, 500), (4000, 2, 1)] {
            let along = Along { outer, size, inner };
            let options = CrossEntropy { along, ignore_index: IGNORED, reduction };
            let (len, count) = (outer * size * inner, outer * inner);
            let x = Values::random(dtype, 1, len);
            let mut log_probs = Values::unwritten(dtype, len);
            both!(d => d.softmax(d.input(&x), along, true, d.output(&mut log_probs)));
            let (targets, outputs) = (targets(along), if reduction == LossReduction::None { count } else { 1 });
            let (mut losses, mut counted) = (Values::unwritten(dtype, outputs), Values::unwritten(dtype, 1));
            both!(d => d.nll_loss(
                d.input(&log_probs),
                d.input(&targets),
                options,
                d.output(&mut losses),
                d.output(&mut counted)
            ));
            losses.assert_summed(count);
            counted.assert_same();
            let (grads, mut dx) = (Values::random(dtype, 3, outputs), Values::unwritten(dtype, len));
            both!(d => d.cross_entropy_backward(
                d.input(&grads),
                d.input(&log_probs),
                d.input(&targets),
                options,
                d.input(&counted),
                d.output(&mut dx)
            ));
            dx.assert_rounded(1);
        }
    }
}

#[test]
fn the_mean_over_ignored_targets_alone_is_not_a_number() {
    let along = Along { outer: 3, size: 2, inner: 1 };
    let options = CrossEntropy { along, ignore_index: 7, reduction: LossReduction::Mean };
    let (log_probs, targets) = (Values::random(DType::F32, 1, 6), Values::of(DType::I64, &[7.0; 3]));
    let (mut losses, mut counted) = (Values::unwritten(DType::F32, 1), Values::of(DType::F32, &[5.0]));
    both!(d => d.nll_loss(
        d.input(&log_probs),
        d.input(&targets),
        options,
        d.output(&mut losses),
        d.output(&mut counted)
    ));
    assert!(losses.results()[0].is_nan());
    assert_eq!(counted.results(), [0.0]);
}

#[test]
fn a_target_out_of_range_is_raised_by_the_next_wait_and_its_loss_is_not_a_number() {
    // A device of its own, since its status is looked at by every wait.
    let cuda = crate::harness::other();
    let along = Along { outer: 3, size: 4, inner: 1 };
    for (wrong, reduction) in [4.0, -1.0, 1e15].into_iter().flat_map(|wrong| REDUCTIONS.map(|r| (wrong, r))) {
        let options = CrossEntropy { along, ignore_index: IGNORED, reduction };
        let log_probs = Values::random_on(&cuda, DType::F64, 1, 12);
        let targets = Values::on(&cuda, DType::I64, &[1.0, wrong, 2.0]);
        let outputs = if reduction == LossReduction::None { 3 } else { 1 };
        let mut losses = Values::unwritten_on(&cuda, DType::F64, outputs);
        let mut counted = Values::unwritten_on(&cuda, DType::F64, 1);
        let mut dx = Values::unwritten_on(&cuda, DType::F64, 12);
        let (x, t) = (cuda.input(&log_probs), cuda.input(&targets));
        cuda.nll_loss(x, t, options, cuda.output(&mut losses), cuda.output(&mut counted)).unwrap();
        let error = cuda.synchronize(&|| Ok(())).unwrap_err();
        assert_eq!(error.code(), Code::Argument);
        assert!(error.message().contains("targets in [0, classes)"), "{error}");
        cuda.synchronize(&|| Ok(())).unwrap();
        let values = losses.results();
        assert!(values[if outputs == 3 { 1 } else { 0 }].is_nan());
        assert_eq!(values.iter().filter(|value| value.is_nan()).count(), 1);
        let grads = Values::random_on(&cuda, DType::F64, 3, outputs);
        let (grads, counted) = (cuda.input(&grads), cuda.input(&counted));
        cuda.cross_entropy_backward(grads, x, t, options, counted, cuda.output(&mut dx)).unwrap();
        assert_eq!(cuda.synchronize(&|| Ok(())).unwrap_err().code(), Code::Argument);
        let values = dx.results();
        assert!((0..12).all(|i| values[i].is_nan() == (4..8).contains(&i)));
    }
}

#[test]
fn wrong_types_are_errors() {
    let cuda = cuda();
    let along = Along { outer: 3, size: 2, inner: 1 };
    let options = CrossEntropy { along, ignore_index: IGNORED, reduction: LossReduction::Sum };
    let (x, targets) = (Values::random(DType::F32, 1, 6), Values::of(DType::I32, &[0.0; 3]));
    let (mut losses, mut counted) = (Values::unwritten(DType::F32, 1), Values::unwritten(DType::F32, 1));
    let result = cuda.nll_loss(
        cuda.input(&x),
        cuda.input(&targets),
        options,
        cuda.output(&mut losses),
        cuda.output(&mut counted),
    );
    assert_eq!(crate::harness::code(result), Code::DType);
}
