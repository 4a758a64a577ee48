//! A few steps of SGD and AdamW against their rules in float64.

use crate::harness::*;
use syncbn_core::Ops;
use syncbn_core::ops::{AdamWStep, SgdStep};
use syncbn_cpu::Cpu;

const LEN: usize = 37;
const STEPS: u64 = 5;

fn gradient<T: Num>(step: u64) -> Vec<T> {
    random(100 + step, LEN)
}

fn sgd<T: Num>(rule: SgdStep) {
    let mut parameter: Vec<T> = random(50, LEN);
    let (mut expected, mut velocity) = (wide(&parameter), vec![0.0; LEN]);
    let mut buffer = vec![T::of(f64::NAN); LEN];
    for step in 0..STEPS {
        let rule = SgdStep { first: step == 0, ..rule };
        let dy: Vec<T> = gradient(step);
        let momentum_buffer = (rule.momentum != 0.0).then(|| T::view_mut(&mut buffer));
        Cpu.sgd_step(T::view_mut(&mut parameter), T::view(&dy), momentum_buffer, rule).unwrap();
        for (i, dy) in wide(&dy).into_iter().enumerate() {
            let decayed = dy + rule.weight_decay * expected[i];
            velocity[i] =
                if rule.first { decayed } else { rule.momentum * velocity[i] + (1.0 - rule.dampening) * decayed };
            let direction = match (rule.momentum != 0.0, rule.nesterov) {
                (false, _) => decayed,
                (true, false) => velocity[i],
                (true, true) => decayed + rule.momentum * velocity[i],
            };
            expected[i] -= rule.lr * direction;
        }
        assert_close(&format!("{rule:?}, step {step}"), &parameter, &expected, 9);
    }
}

#[test]
fn sgd_with_momentum_dampening_decay_and_nesterov() {
    let plain = SgdStep { lr: 0.1, momentum: 0.0, dampening: 0.0, weight_decay: 0.0, nesterov: false, first: false };
    let rules = [
        plain,
        SgdStep { weight_decay: 0.01, ..plain },
        SgdStep { momentum: 0.9, ..plain },
        SgdStep { momentum: 0.9, dampening: 0.3, weight_decay: 0.02, ..plain },
        SgdStep { momentum: 0.8, nesterov: true, weight_decay: 0.01, ..plain },
    ];
    for rule in rules {
        sgd::<f32>(rule);
        sgd::<f64>(rule);
    }
}

fn adamw<T: Num>(rule: AdamWStep) {
    let mut parameter: Vec<T> = random(51, LEN);
    let (mut m, mut v) = (vec![T::of(0.0); LEN], vec![T::of(0.0); LEN]);
    let (mut expected, mut first, mut second) = (wide(&parameter), vec![0.0; LEN], vec![0.0; LEN]);
    for step in 1..=STEPS {
        let dy: Vec<T> = gradient(step);
        let rule = AdamWStep { step, ..rule };
        let (moments, views) = ((T::view_mut(&mut m), T::view_mut(&mut v)), T::view(&dy));
        Cpu.adamw_step(T::view_mut(&mut parameter), views, moments.0, moments.1, rule).unwrap();
        for (i, dy) in wide(&dy).into_iter().enumerate() {
            expected[i] *= 1.0 - rule.lr * rule.weight_decay;
            first[i] = rule.beta1 * first[i] + (1.0 - rule.beta1) * dy;
            second[i] = rule.beta2 * second[i] + (1.0 - rule.beta2) * dy * dy;
            let corrected = |moment: f64, beta: f64| moment / (1.0 - beta.powi(step as i32));
            let root = corrected(second[i], rule.beta2).sqrt();
            expected[i] -= rule.lr * corrected(first[i], rule.beta1) / (root + rule.eps);
        }
        assert_close(&format!("{rule:?}"), &parameter, &expected, 9);
        assert_close(&format!("first moment, {rule:?}"), &m, &first, 9);
        assert_close(&format!("second moment, {rule:?}"), &v, &second, 9);
    }
}

#[test]
fn adamw_corrects_its_moments_and_decays_apart_from_them() {
    let usual = AdamWStep { lr: 0.01, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.0, step: 0 };
    for rule in
        [usual, AdamWStep { weight_decay: 0.1, ..usual }, AdamWStep { beta1: 0.5, beta2: 0.6, eps: 1e-3, ..usual }]
    {
        adamw::<f32>(rule);
        adamw::<f64>(rule);
    }
}
