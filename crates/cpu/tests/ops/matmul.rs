//! Matrix products, transposed and batched, by three loops.

use crate::harness::*;
use syncbn_core::Ops;
use syncbn_core::ops::Matmul;
use syncbn_cpu::Cpu;

fn check<T: Num>(geometry: Matmul) {
    let Matmul { batch, m, n, k, transpose_a, transpose_b, b_batch_stride, accumulate } = geometry;
    let a: Vec<T> = random(21, batch * m * k);
    let b: Vec<T> = random(22, k * n * if b_batch_stride == 0 { 1 } else { batch });
    let c: Vec<T> = random(23, batch * m * n);
    let mut expected = if accumulate { wide(&c) } else { vec![0.0; c.len()] };
    for (index, (i, j)) in (0..batch).flat_map(|index| (0..m * n).map(move |at| (index, (at / n, at % n)))) {
        for l in 0..k {
            let from_a: f64 = a[index * m * k + if transpose_a { l * m + i } else { i * k + l }].into();
            let from_b: f64 = b[index * b_batch_stride + if transpose_b { j * k + l } else { l * n + j }].into();
            expected[(index * m + i) * n + j] += from_a * from_b;
        }
    }
    let mut got = if accumulate { c } else { vec![T::of(f64::NAN); c.len()] };
    Cpu.matmul(T::view(&a), T::view(&b), geometry, T::view_mut(&mut got)).unwrap();
    assert_close(&format!("{geometry:?}"), &got, &expected, k);
}

#[test]
fn products_are_their_definition() {
    for (batch, m, n, k) in [(1, 1, 1, 1), (1, 7, 5, 3), (3, 5, 1, 9), (2, 1, 33, 17), (1, 129, 65, 33), (2, 3, 4, 0)] {
        for flags in 0..16 {
            let geometry = Matmul {
                batch,
                m,
                n,
                k,
                transpose_a: flags & 1 != 0,
                transpose_b: flags & 2 != 0,
                b_batch_stride: if flags & 4 != 0 { k * n } else { 0 },
                accumulate: flags & 8 != 0,
            };
            check::<f32>(geometry);
            check::<f64>(geometry);
        }
    }
}
