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
    use std::{
        arch::{asm, x86_64::*},
        hint::black_box,
        time::Instant,
    };

    use serde_json::{Value, json};

    const RUNS: usize = 2_000;
    const STEPS: usize = 20_000;
    /// Sums that do not wait for one another: more than any CPU has under way.
    const SUMS: usize = 14;

    pub(super) fn peaks() -> Value {
        let mut peaks = json!({});
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            // SAFETY: the CPU has what the loop is compiled for.
            peaks["avx2 f32"] = giga_per_s(8 * SUMS, || unsafe { avx2_f32() }).into();
        }
        if is_x86_feature_detected!("avx512f") {
            // SAFETY: the CPU has what the loop is compiled for.
            peaks["avx512 f32"] = giga_per_s(16 * SUMS, || unsafe { avx512_f32() }).into();
        }
        if is_x86_feature_detected!("avx512bf16") {
            // SAFETY: the CPU has what the loop is compiled for.
            peaks["avx512 bf16"] = giga_per_s(32 * SUMS, || unsafe { avx512_bf16() }).into();
        }
        if is_x86_feature_detected!("avx512vnni") {
            // SAFETY: the CPU has what the loop is compiled for.
            peaks["avx512 int8"] = giga_per_s(64 * SUMS, || unsafe { avx512_int8() }).into();
        }
        let tiles = tiles();
        if tiles & AMX_BF16 != 0 {
            // SAFETY: the CPU has such tiles.
            peaks["amx bf16"] = giga_per_s(TILES * 16 * 16 * 32, || unsafe { amx_bf16() }).into();
        }
        if tiles & AMX_INT8 != 0 {
            // SAFETY: the CPU has such tiles.
            peaks["amx int8"] = giga_per_s(TILES * 16 * 16 * 64, || unsafe { amx_int8() }).into();
        }
        peaks
    }

    /// `run` makes so many products in each step.
    fn giga_per_s(products: usize, run: impl Fn()) -> f64 {
        let seconds = (0..RUNS).map(|_| {
            let began = Instant::now();
            run();
            began.elapsed().as_secs_f64()
        });
        (2 * products * STEPS) as f64 / seconds.fold(f64::MAX, f64::min) / 1e9
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

    const AMX_TILE: u32 = 1 << 24;
    const AMX_BF16: u32 = 1 << 22;
    const AMX_INT8: u32 = 1 << 25;
    /// Tiles of sums.
    const TILES: usize = 6;

    /// What the CPU has of AMX, where the system allows it.
    fn tiles() -> u32 {
        let there = match __cpuid(0).eax {
            ..7 => 0,
            _ => __cpuid_count(7, 0).edx,
        };
        if there & AMX_TILE != 0 && allowed() {
            there
        } else {
            0
        }
    }

    #[cfg(target_os = "linux")]
    fn allowed() -> bool {
        const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
        const XFEATURE_XTILEDATA: libc::c_long = 18;
        // SAFETY: the call reads and writes no memory of ours.
        unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0 }
    }

    #[cfg(not(target_os = "linux"))]
    fn allowed() -> bool {
        false
    }

    /// A function that adds to each tile of sums, many times over.
    macro_rules! tile_loop {
        ($name:ident, $dot:literal) => {
            /// # Safety
            /// The CPU has such tiles, and the system allows them.
            unsafe fn $name() {
                /// Eight tiles of 16 rows of 64 bytes.
                #[repr(align(64))]
                struct Shapes([u8; 64]);
                let mut shapes = Shapes([0; 64]);
                shapes.0[0] = 1;
                for tile in 0..8 {
                    (shapes.0[16 + 2 * tile], shapes.0[48 + tile]) = (64, 16);
                }
                // SAFETY: the caller's word; nothing is written but the tiles, which are zero by their configuration.
                unsafe {
                    asm!(
                        "ldtilecfg [{shapes}]",
                        "2:",
                        concat!($dot, " tmm0, tmm6, tmm7"),
                        concat!($dot, " tmm1, tmm6, tmm7"),
                        concat!($dot, " tmm2, tmm6, tmm7"),
                        concat!($dot, " tmm3, tmm6, tmm7"),
                        concat!($dot, " tmm4, tmm6, tmm7"),
                        concat!($dot, " tmm5, tmm6, tmm7"),
                        "dec {steps}",
                        "jnz 2b",
                        "tilerelease",
                        shapes = in(reg) &raw const shapes,
                        steps = inout(reg) STEPS => _,
                        out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                        out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                        options(nostack, readonly),
                    );
                }
            }
        };
    }

    tile_loop!(amx_bf16, "tdpbf16ps");
    tile_loop!(amx_int8, "tdpbusd");
}
