//! PyTorch's CPU random numbers: MT19937 and the distributions built on it.
//!
//! The engine is Matsumoto & Nishimura, "Mersenne Twister" (ACM TOMACS 8(1), 1998), seeded by `init_genrand` with the
//! low 32 bits of the seed. The distributions follow ATen's `DistributionsHelper.h`, `TensorFactories.cpp` and
//! `native/cpu/DistributionTemplates.h`: 24 random bits make a float32 in [0, 1), 53 make a float64; normals come from
//! Box & Muller, in blocks of sixteen for sixteen or more values and in pairs with a cached second one for fewer.

const N: usize = 624;
const M: usize = 397;

/// A stream of random numbers.
#[derive(Clone)]
pub struct Generator {
    state: [u32; N],
    next: usize,
    /// The second of the last pair of normals.
    cached_normal: Option<f64>,
}

impl std::fmt::Debug for Generator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Generator").field("next", &self.next).finish_non_exhaustive()
    }
}

impl Default for Generator {
    /// The seed of a C++ `std::mt19937` and of a fresh PyTorch engine.
    fn default() -> Self {
        Self::new(5489)
    }
}

impl Generator {
    /// The stream of `seed`.
    pub fn new(seed: u64) -> Self {
        let mut state = [0u32; N];
        state[0] = seed as u32;
        for i in 1..N {
            let before = state[i - 1];
            state[i] = 1_812_433_253u32.wrapping_mul(before ^ (before >> 30)).wrapping_add(i as u32);
        }
        Self { state, next: N, cached_normal: None }
    }

    fn refill(&mut self) {
        for i in 0..N {
            let mixed = (self.state[i] & 0x8000_0000) | (self.state[(i + 1) % N] & 0x7fff_ffff);
            let twist = if mixed & 1 == 1 { 0x9908_b0df } else { 0 };
            self.state[i] = self.state[(i + M) % N] ^ (mixed >> 1) ^ twist;
        }
        self.next = 0;
    }

    /// 32 random bits.
    pub fn random(&mut self) -> u32 {
        if self.next == N {
            self.refill();
        }
        let mut y = self.state[self.next];
        self.next += 1;
        y ^= y >> 11;
        y ^= (y << 7) & 0x9d2c_5680;
        y ^= (y << 15) & 0xefc6_0000;
        y ^ (y >> 18)
    }

    /// 64 random bits, the first draw in the upper half.
    pub fn random64(&mut self) -> u64 {
        let high = u64::from(self.random());
        (high << 32) | u64::from(self.random())
    }

    /// A float32 in [0, 1).
    pub fn uniform_f32(&mut self) -> f32 {
        (self.random() & ((1 << 24) - 1)) as f32 * 2f32.powi(-24)
    }

    /// A float64 in [0, 1).
    pub fn uniform_f64(&mut self) -> f64 {
        (self.random64() & ((1 << 53) - 1)) as f64 * 2f64.powi(-53)
    }

    /// One standard normal; every second one is the cached partner of the one before.
    fn normal(&mut self) -> f64 {
        if let Some(cached) = self.cached_normal.take() {
            return cached;
        }
        let (u1, u2) = (self.uniform_f64(), self.uniform_f64());
        let radius = (-2.0 * (-u2).ln_1p()).sqrt();
        let theta = 2.0 * std::f64::consts::PI * u1;
        self.cached_normal = Some(radius * theta.sin());
        radius * theta.cos()
    }

    /// `len` float32 in [0, 1), as `torch.rand`.
    pub fn rand_f32(&mut self, len: usize) -> Vec<f32> {
        (0..len).map(|_| self.uniform_f32()).collect()
    }

    /// `len` float64 in [0, 1), as `torch.rand`.
    pub fn rand_f64(&mut self, len: usize) -> Vec<f64> {
        (0..len).map(|_| self.uniform_f64()).collect()
    }

    /// `len` standard normals, as `torch.randn` with float32 up to the last bits (PyTorch's vector code approximates
    /// logarithm and sine).
    pub fn randn_f32(&mut self, len: usize) -> Vec<f32> {
        if len < 16 {
            return (0..len).map(|_| self.normal() as f32).collect();
        }
        let mut values = self.rand_f32(len);
        fill_normal_blocks(
            &mut values,
            |block| block.fill_with(|| self.uniform_f32()),
            |u1, u2| {
                let (radius, theta) = ((-2.0 * u1.ln()).sqrt(), 2.0 * std::f32::consts::PI * u2);
                (radius * theta.cos(), radius * theta.sin())
            },
        );
        values
    }

    /// `len` standard normals, as `torch.randn` with float64.
    pub fn randn_f64(&mut self, len: usize) -> Vec<f64> {
        if len < 16 {
            return (0..len).map(|_| self.normal()).collect();
        }
        let mut values = self.rand_f64(len);
        fill_normal_blocks(
            &mut values,
            |block| block.fill_with(|| self.uniform_f64()),
            |u1, u2| {
                let (radius, theta) = ((-2.0 * u1.ln()).sqrt(), 2.0 * std::f64::consts::PI * u2);
                (radius * theta.cos(), radius * theta.sin())
            },
        );
        values
    }

    /// A permutation of 0..n, as `torch.randperm(n, generator=…)` on the CPU.
    pub fn randperm(&mut self, n: usize) -> Vec<u32> {
        let mut permutation: Vec<u32> = (0..n as u32).collect();
        for i in 0..n.saturating_sub(1) {
            let offset = self.random() as usize % (n - i);
            permutation.swap(i, i + offset);
        }
        permutation
    }
}

/// Turns uniforms into normals in blocks of sixteen: element j pairs with element j + 8. A rest is made by drawing the
/// last sixteen anew.
fn fill_normal_blocks<T: Copy + From<u8> + std::ops::Sub<Output = T>>(
    values: &mut [T],
    redraw: impl FnOnce(&mut [T]),
    box_muller: impl Fn(T, T) -> (T, T),
) {
    let transform = |block: &mut [T]| {
        for j in 0..8 {
            (block[j], block[j + 8]) = box_muller(T::from(1) - block[j], block[j + 8]);
        }
    };
    values.chunks_exact_mut(16).for_each(transform);
    let len = values.len();
    if !len.is_multiple_of(16) {
        let rest = &mut values[len - 16..];
        redraw(rest);
        transform(rest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_engine_is_the_published_one() {
        // The 10,000th output of the default seed is fixed by the C++ standard, [rand.predef].
        let mut generator = Generator::default();
        let last = (0..10_000).map(|_| generator.random()).last();
        assert_eq!(last, Some(4_123_659_995));
    }

    #[test]
    fn permutations_equal_pytorchs() {
        assert_eq!(Generator::new(0).randperm(10), [4, 1, 7, 5, 3, 9, 0, 8, 6, 2]);
        assert_eq!(Generator::new(1 << 32).randperm(10), Generator::new(0).randperm(10));
        assert_eq!(Generator::new(3).randperm(1), [0]);
        assert!(Generator::new(3).randperm(0).is_empty());
    }

    #[test]
    fn normals_have_mean_0_and_variance_1() {
        for values in [
            Generator::new(1).randn_f64(100_003),
            (0..50_000)
                .fold((Generator::new(2), vec![]), |(mut g, mut v), _| {
                    v.extend(g.randn_f64(2));
                    (g, v)
                })
                .1,
        ] {
            let n = values.len() as f64;
            let mean = values.iter().sum::<f64>() / n;
            let var = values.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n;
            assert!(mean.abs() <= 0.02 && (var - 1.0).abs() <= 0.02, "{mean} {var}");
        }
    }
}
