//! What a core of this machine multiplies at most: loops over registers alone, by the instructions of each format.
//!
//! ```text
//! cargo run --release -p processor --example peaks
//! ```
//!
//! One line of JSON: billions of operations a second for each path and format, an addition and a multiplication counted as
//! two. Of many short runs the fastest, since nothing makes a core faster than it is.

#![cfg_attr(
    target_arch = "x86_64",
    expect(unsafe_code, reason = "intrinsics, where the CPU was asked for them")
)]

use std::{error::Error, io::Write};

fn main() -> Result<(), Box<dyn Error>> {
    #[cfg(target_arch = "x86_64")]
    let peaks = x86::peaks();
    #[cfg(not(target_arch = "x86_64"))]
    let peaks = serde_json::json!({});
    Ok(writeln!(std::io::stdout(), "{peaks}")?)
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::{arch::x86_64::*, hint::black_box, time::Instant};

    use serde_json::{Value, json};

    const RUNS: usize = 2_000;
    const STEPS: usize = 20_000;
    /// Sums that do not wait for one another: more than any CPU has under way.
    const SUMS: usize = 14;

    pub(super) fn peaks() -> Value {
        let mut peaks = json!({});
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            // SAFETY: the CPU has what the loop is compiled for.
            peaks["avx2 f32"] = giga_per_s(8, || unsafe { avx2_f32() }).into();
        }
        if is_x86_feature_detected!("avx512f") {
            // SAFETY: the CPU has what the loop is compiled for.
            peaks["avx512 f32"] = giga_per_s(16, || unsafe { avx512_f32() }).into();
        }
        if is_x86_feature_detected!("avx512bf16") {
            // SAFETY: the CPU has what the loop is compiled for.
            peaks["avx512 bf16"] = giga_per_s(32, || unsafe { avx512_bf16() }).into();
        }
        if is_x86_feature_detected!("avx512vnni") {
            // SAFETY: the CPU has what the loop is compiled for.
            peaks["avx512 int8"] = giga_per_s(64, || unsafe { avx512_int8() }).into();
        }
        peaks
    }

    fn giga_per_s(products: usize, run: impl Fn()) -> f64 {
        let seconds = (0..RUNS).map(|_| {
            let began = Instant::now();
            run();
            began.elapsed().as_secs_f64()
        });
        (2 * products * SUMS * STEPS) as f64 / seconds.fold(f64::MAX, f64::min) / 1e9
    }

    /// A function that adds to each sum, many times over.
    macro_rules! register_loop {
        ($name:ident, $features:literal, $zero:expr, $dot:expr) => {
            #[target_feature(enable = $features)]
            fn $name() {
                let (a, b) = (black_box($zero), black_box($zero));
                let mut sums = [$zero; SUMS];
                for _ in 0..STEPS {
                    for sum in &mut sums {
                        *sum = $dot(*sum, a, b);
                    }
                }
                black_box(sums);
            }
        };
    }

    register_loop!(avx2_f32, "avx2,fma", _mm256_setzero_ps(), |sum, a, b| {
        _mm256_fmadd_ps(a, b, sum)
    });
    register_loop!(avx512_f32, "avx512f", _mm512_setzero_ps(), |sum, a, b| {
        _mm512_fmadd_ps(a, b, sum)
    });
    register_loop!(
        avx512_bf16,
        "avx512f,avx512bf16",
        _mm512_setzero_ps(),
        |sum, a: __m512, b: __m512| {
            let bf16 = |words| {
                // SAFETY: both are 512 bits, and any bits are a value of both.
                unsafe { std::mem::transmute::<__m512, __m512bh>(words) }
            };
            _mm512_dpbf16_ps(sum, bf16(a), bf16(b))
        }
    );
    register_loop!(
        avx512_int8,
        "avx512f,avx512vnni",
        _mm512_setzero_si512(),
        |sum, a, b| _mm512_dpbusd_epi32(sum, a, b)
    );
}
