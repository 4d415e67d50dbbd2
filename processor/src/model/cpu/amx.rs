//! AMX: products by tiles instead of by registers.
//!
//! A tile is up to 16 rows of 64 bytes. The words of 16 rows are one as they lie in their matrix, and 16 lines of a panel
//! are one of columns; the products of two add to a tile of 16 by 16 sums. A block is two tiles of rows by two of columns:
//!
//! ```text
//!                columns  6   7
//!                       ┌───┬───┐
//!                rows 4 │ 0 │ 1 │   by the numbers of the tiles
//!                     5 │ 2 │ 3 │
//!                       └───┴───┘
//! ```
//!
//! Rust has no intrinsics for tiles, and no value of it is one, so a block is a single piece of assembly, from zero to the
//! sums in memory; everything before and after it is shared with a stand-in that tests have for the tiles, on any CPU. The
//! shapes of tiles are set for each product and given back after it: that costs some hundred cycles of ten thousands, and
//! no switch of threads has to save them, whatever else a thread does.

#![expect(
    unsafe_code,
    reason = "assembly, behind the proof that the CPU and the system have tiles, on memory whose bounds are checked before it"
)]

use std::{
    arch::{
        asm,
        x86_64::{__cpuid, __cpuid_count, _mm512_castsi512_ps},
    },
    sync::LazyLock,
};

use super::{
    epilogue::Epilogue,
    format::{Bf16, ColumnScale, Dot, Format, Int8, Plain, RowScale},
    isa::{Avx512, Isa, Work},
    kernel::{Multiply, Product},
    matrix::Line,
};

/// A format of AVX-512 whose products are added up in tiles.
#[derive(Clone, Copy)]
pub(super) struct Tiled<F, T> {
    /// Encodes rows, and makes numbers of sums.
    format: F,
    tiles: T,
}

/// Which numbers tiles multiply.
#[derive(Clone, Copy)]
pub(super) enum Numbers {
    /// Pairs of `bf16`.
    Bf16,
    /// Four `int8`: those of rows unsigned, of columns signed.
    Int8,
}

/// A format that there are tiles for.
pub(super) trait Tileable: Dot<Isa = Avx512> {
    const NUMBERS: Numbers;

    /// A row of a tile as the sums that it is.
    fn sums(self, words: Self::Words) -> Self::Sums;
}

/// Tiles of this thread. A value of them is the proof that they are there.
pub(super) trait Tiles: Copy + Send + Sync + 'static {
    fn detect(numbers: Numbers) -> Option<Self>;
    /// Gives each tile of rows, and of sums, so many rows until the release.
    fn configure(self, height: usize);
    fn release(self);
    /// Multiplies a block of one or two tiles of rows. Row *r* of the tile of sums *t* becomes line 16 *t* + *r*.
    ///
    /// # Safety
    /// The block's rows and columns can be read, and the tiles are configured for its height.
    unsafe fn multiply<const TILES: usize>(self, block: Block<TILES>, sums: &mut Sums);
}

/// Rows and columns of a block.
#[derive(Clone, Copy)]
pub(super) struct Block<const TILES: usize> {
    numbers: Numbers,
    /// The first word of each tile of rows …
    rows: [*const u32; TILES],
    /// … which has so many of them …
    #[cfg_attr(
        not(test),
        expect(dead_code, reason = "the CPU knows it from the configuration")
    )]
    height: usize,
    /// … so many words apart.
    stride: usize,
    /// Two panels.
    columns: [*const Line; 2],
    /// Tiles of rows side by side, and of columns one below the other.
    steps: usize,
}

/// Rows of a tile, and words of a row.
const SIDE: usize = 16;
type Sums = [Line; 4 * SIDE];

impl<F: Tileable, T: Tiles> Format for Tiled<F, T> {
    type Isa = Avx512;
    const PER_WORD: usize = F::PER_WORD;
    const WRITTEN_PER_WORD: usize = F::WRITTEN_PER_WORD;

    fn detect() -> Option<Self> {
        Some(Self {
            format: F::detect()?,
            tiles: T::detect(F::NUMBERS)?,
        })
    }

    #[inline(always)]
    fn isa(self) -> Avx512 {
        self.format.isa()
    }

    fn vectorize<W: Work>(self, work: W) -> W::Output {
        self.format.vectorize(work)
    }

    #[inline(always)]
    fn write(self, values: <Avx512 as Isa>::Vector, column: usize, row: &mut [u32]) {
        self.format.write(values, column, row);
    }

    #[inline(always)]
    fn settle(self, columns: usize, row: &mut [u32]) -> RowScale {
        self.format.settle(columns, row)
    }

    fn encode_weights(values: &[f32], words: &mut Vec<u32>) -> ColumnScale {
        F::encode_weights(values, words)
    }
}

impl<F: Tileable + Plain, T: Tiles> Plain for Tiled<F, T> {
    #[inline(always)]
    fn weave(self, row: impl Fn(usize) -> <Avx512 as Isa>::Vector, words: &mut [u32]) {
        self.format.weave(row, words);
    }
}

impl<F: Tileable, T: Tiles> Multiply for Tiled<F, T> {
    const ROWS: usize = 2 * SIDE;
    const COLUMNS: usize = 2 * SIDE;
    const WORDS: usize = SIDE;

    #[inline(always)]
    unsafe fn multiply<E: Epilogue<Avx512>>(mut product: Product<'_, Self, E>) {
        let (count, columns, tiles) = (product.rows.count, product.columns, product.format.tiles);
        assert!(
            columns.columns.is_multiple_of(Self::COLUMNS) && columns.words.is_multiple_of(Self::WORDS),
            "columns are no whole tiles"
        );
        if count == 0 {
            return;
        }
        tiles.configure(count.min(SIDE));
        let mut sums = [Line::ZERO; 4 * SIDE];
        for column in (0..columns.columns).step_by(2 * SIDE) {
            for row in (0..count).step_by(2 * SIDE) {
                // SAFETY: the caller's word, and the tiles are configured.
                unsafe {
                    match row + SIDE < count {
                        true => product.block::<2>(row, column, &mut sums),
                        false => product.block::<1>(row, column, &mut sums),
                    }
                }
            }
        }
        tiles.release();
    }
}

impl<F: Tileable, T: Tiles, E: Epilogue<Avx512>> Product<'_, Tiled<F, T>, E> {
    /// Some rows from `row` on times the two panels from `column` on. A tile that would end behind the last row begins so
    /// much earlier, and what of it was taken already is not taken again.
    ///
    /// # Safety
    /// The product is in bounds and has rows beyond those of all tiles but one, and tiles are configured for it.
    #[inline(always)]
    unsafe fn block<const TILES: usize>(&mut self, row: usize, column: usize, sums: &mut Sums) {
        let (Tiled { format, tiles }, words, stride) = (self.format, self.columns.words, self.rows.stride);
        let height = self.rows.count.min(SIDE);
        let first: [usize; TILES] =
            std::array::from_fn(|tile| (row + tile * SIDE).min(self.rows.count - height));
        let panel = column / SIDE * words;
        let block = Block {
            numbers: F::NUMBERS,
            rows: first.map(|row| self.rows.words[row * stride..].as_ptr()),
            height,
            stride,
            columns: [panel, panel + words].map(|line| self.columns.lines[line..].as_ptr()),
            steps: words / SIDE,
        };
        // SAFETY: the caller's.
        unsafe { tiles.multiply(block, sums) };
        for (tile, first) in first.into_iter().enumerate() {
            for row in row + tile * SIDE..first + height {
                let scale = self.rows.scales.get(row).copied().unwrap_or(RowScale::ONE);
                for side in 0..2 {
                    let (line, column) = (
                        &sums[(2 * tile + side) * SIDE + row - first].0,
                        column + side * SIDE,
                    );
                    // SAFETY: a line has as many words as there are lanes.
                    let sums = format.sums(unsafe { format.load(line.as_ptr()) });
                    let values = format.values(sums, scale, self.columns.scales.from(column));
                    self.epilogue.take(format.isa(), row, column, values);
                }
            }
        }
    }
}

impl Tileable for Bf16 {
    const NUMBERS: Numbers = Numbers::Bf16;

    #[inline(always)]
    fn sums(self, words: Self::Words) -> Self::Sums {
        // SAFETY: `self` exists, so the CPU has vectors of this kind.
        unsafe { _mm512_castsi512_ps(words) }
    }
}

impl Tileable for Int8 {
    const NUMBERS: Numbers = Numbers::Int8;

    #[inline(always)]
    fn sums(self, words: Self::Words) -> Self::Sums {
        words
    }
}

/// The CPU's tiles.
#[derive(Clone, Copy)]
pub(super) struct Amx(());

/// As the CPU reads it: the shapes of eight tiles.
#[repr(C, align(64))]
struct Configuration {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    heights: [u8; 16],
}

/// A block by the tiles' numbers in the drawing above. `$dot` multiplies two tiles.
macro_rules! multiply {
    (1, $dot:literal, $block:ident, $sums:ident) => {
        asm!(
            "tilezero tmm0",
            "tilezero tmm1",
            "2:",
            "tileloadd tmm4, [{row} + {stride}]",
            "tileloadd tmm6, [{left} + {line}]",
            concat!($dot, " tmm0, tmm4, tmm6"),
            "tileloadd tmm7, [{right} + {line}]",
            concat!($dot, " tmm1, tmm4, tmm7"),
            "add {row}, 64",
            "add {left}, 1024",
            "add {right}, 1024",
            "dec {steps}",
            "jnz 2b",
            "tilestored [{sums} + {line}], tmm0",
            "tilestored [{sums} + {line} + 1024], tmm1",
            row = inout(reg) $block.rows[0] => _,
            left = inout(reg) $block.columns[0] => _,
            right = inout(reg) $block.columns[1] => _,
            steps = inout(reg) $block.steps => _,
            stride = in(reg) $block.stride * size_of::<u32>(),
            line = in(reg) size_of::<Line>(),
            sums = in(reg) $sums.as_mut_ptr(),
            out("tmm0") _, out("tmm1") _, out("tmm4") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        )
    };
    (2, $dot:literal, $block:ident, $sums:ident) => {
        asm!(
            "tilezero tmm0",
            "tilezero tmm1",
            "tilezero tmm2",
            "tilezero tmm3",
            "2:",
            "tileloadd tmm4, [{upper} + {stride}]",
            "tileloadd tmm6, [{left} + {line}]",
            concat!($dot, " tmm0, tmm4, tmm6"),
            "tileloadd tmm7, [{right} + {line}]",
            concat!($dot, " tmm1, tmm4, tmm7"),
            "tileloadd tmm5, [{lower} + {stride}]",
            concat!($dot, " tmm2, tmm5, tmm6"),
            concat!($dot, " tmm3, tmm5, tmm7"),
            "add {upper}, 64",
            "add {lower}, 64",
            "add {left}, 1024",
            "add {right}, 1024",
            "dec {steps}",
            "jnz 2b",
            "tilestored [{sums} + {line}], tmm0",
            "tilestored [{sums} + {line} + 1024], tmm1",
            "tilestored [{sums} + {line} + 2048], tmm2",
            "tilestored [{sums} + {line} + 3072], tmm3",
            upper = inout(reg) $block.rows[0] => _,
            lower = inout(reg) $block.rows[1] => _,
            left = inout(reg) $block.columns[0] => _,
            right = inout(reg) $block.columns[1] => _,
            steps = inout(reg) $block.steps => _,
            stride = in(reg) $block.stride * size_of::<u32>(),
            line = in(reg) size_of::<Line>(),
            sums = in(reg) $sums.as_mut_ptr(),
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        )
    };
}

impl Tiles for Amx {
    fn detect(numbers: Numbers) -> Option<Self> {
        /// Bits of EDX, of leaf 7 of CPUID.
        const TILE: u32 = 1 << 24;
        const BF16: u32 = 1 << 22;
        const INT8: u32 = 1 << 25;
        if __cpuid(0).eax < 7 {
            return None;
        }
        let needed = match numbers {
            Numbers::Bf16 => TILE | BF16,
            Numbers::Int8 => TILE | INT8,
        };
        let there = __cpuid_count(7, 0).edx;
        (there & needed == needed && *ALLOWED).then_some(Self(()))
    }

    #[inline(always)]
    fn configure(self, height: usize) {
        let height = height as u8;
        let mut heights = [0; 16];
        heights[..6].fill(height);
        heights[6..8].fill(SIDE as u8);
        let mut row_bytes = [0; 16];
        row_bytes[..8].fill(size_of::<Line>() as u16);
        let configuration = Configuration {
            palette: 1,
            start_row: 0,
            reserved: [0; 14],
            row_bytes,
            heights,
        };
        // SAFETY: `self` exists, so there are tiles, and no shape is larger than they are.
        unsafe {
            asm!(
                "ldtilecfg [{}]",
                in(reg) &raw const configuration,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack, readonly, preserves_flags),
            );
        }
    }

    #[inline(always)]
    fn release(self) {
        // SAFETY: `self` exists, so there are tiles.
        unsafe {
            asm!(
                "tilerelease",
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack, nomem, preserves_flags),
            );
        }
    }

    #[inline(always)]
    unsafe fn multiply<const TILES: usize>(self, block: Block<TILES>, sums: &mut Sums) {
        // SAFETY: `self` exists, and the caller's word. The tiles of sums have 16 lines each.
        unsafe {
            match (TILES, block.numbers) {
                (1, Numbers::Bf16) => multiply!(1, "tdpbf16ps", block, sums),
                (1, Numbers::Int8) => multiply!(1, "tdpbusd", block, sums),
                (_, Numbers::Bf16) => multiply!(2, "tdpbf16ps", block, sums),
                (_, Numbers::Int8) => multiply!(2, "tdpbusd", block, sums),
            }
        }
    }
}

/// Whether the system lets this process use tiles, which it must be asked for once: a thread that has used them takes 8 KiB
/// more to save.
static ALLOWED: LazyLock<bool> = LazyLock::new(|| {
    #[cfg(target_os = "linux")]
    {
        const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
        const XFEATURE_XTILEDATA: libc::c_long = 18;
        // SAFETY: the call reads and writes no memory of ours.
        unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0 }
    }
    #[cfg(not(target_os = "linux"))]
    false
});

#[cfg(test)]
pub(super) mod tests {
    use std::io::Write;

    use proptest::{prelude::*, test_runner::TestRunner};

    use super::{
        super::{epilogue::Residual, format::tests::encoded, kernel::Rows, panels::Panels},
        *,
    };

    /// Tiles by the definition of their instructions, in the order of the assembly.
    #[derive(Clone, Copy)]
    pub(in super::super) struct Emulated;

    type Tile = [[u32; SIDE]; SIDE];

    impl Tiles for Emulated {
        fn detect(_: Numbers) -> Option<Self> {
            Some(Self)
        }

        fn configure(self, _: usize) {}

        fn release(self) {}

        #[inline(always)]
        unsafe fn multiply<const TILES: usize>(self, block: Block<TILES>, sums: &mut Sums) {
            let mut of_block = [[[[0; SIDE]; SIDE]; 2]; TILES];
            for step in 0..block.steps {
                let columns = block
                    .columns
                    .map(|panel| unsafe { tile(panel.add(step * SIDE).cast(), SIDE, Line::WORDS) });
                for (sums, rows) in of_block.iter_mut().zip(block.rows) {
                    let rows = unsafe { tile(rows.add(step * SIDE), block.height, block.stride) };
                    for (sums, columns) in sums.iter_mut().zip(&columns) {
                        for (sums, row) in sums.iter_mut().zip(&rows[..block.height]) {
                            match block.numbers {
                                Numbers::Bf16 => add_bf16(sums, row, columns),
                                Numbers::Int8 => add_int8(sums, row, columns),
                            }
                        }
                    }
                }
            }
            let rows = of_block.iter().flatten().flatten();
            for (line, row) in sums.iter_mut().zip(rows) {
                line.0 = *row;
            }
        }
    }

    /// `height` rows of words, `stride` apart.
    #[inline(always)]
    unsafe fn tile(from: *const u32, height: usize, stride: usize) -> Tile {
        let mut tile = [[0; SIDE]; SIDE];
        for (row, to) in tile[..height].iter_mut().enumerate() {
            *to = unsafe { from.add(row * stride).cast::<[u32; SIDE]>().read() };
        }
        tile
    }

    /// `tdpbf16ps`: the sums of the first numbers of all words and of the second, each fused, then both to what there is.
    /// What is subnormal is zero.
    #[inline(always)]
    fn add_bf16(sums: &mut [u32; SIDE], row: &[u32; SIDE], columns: &Tile) {
        let flushed = |x: f32| if x.is_subnormal() { 0.0_f32.copysign(x) } else { x };
        let halves = |word: u32| [word << 16, word & 0xffff_0000].map(|bits| flushed(f32::from_bits(bits)));
        let mut both = [[0.0_f32; SIDE]; 2];
        for (&word, line) in row.iter().zip(columns) {
            let of_row = halves(word);
            for (column, &word) in line.iter().enumerate() {
                for (half, weight) in halves(word).into_iter().enumerate() {
                    both[half][column] = flushed(of_row[half].mul_add(weight, both[half][column]));
                }
            }
        }
        for (column, sum) in sums.iter_mut().enumerate() {
            let more = flushed(both[0][column] + both[1][column]);
            *sum = flushed(f32::from_bits(*sum) + more).to_bits();
        }
    }

    /// `tdpbusd`: products of unsigned and signed bytes, exactly.
    #[inline(always)]
    fn add_int8(sums: &mut [u32; SIDE], row: &[u32; SIDE], columns: &Tile) {
        for (word, line) in row.iter().zip(columns) {
            for (sum, of_column) in sums.iter_mut().zip(line) {
                for (a, b) in word.to_le_bytes().into_iter().zip(of_column.to_le_bytes()) {
                    let product = i32::from(a) * i32::from(b.cast_signed());
                    *sum = sum.wrapping_add(product.cast_unsigned());
                }
            }
        }
    }

    const INPUTS: usize = 192;
    const OUTPUTS: usize = 64;

    /// What each row adds to ones, as bits.
    fn added<F: Tileable, T: Tiles>(tiled: Tiled<F, T>, rows: &[&[f32]], weights: &[f32]) -> Vec<Vec<u32>> {
        let (words, scales): (Vec<_>, Vec<_>) = rows.iter().map(|row| encoded(tiled, row)).unzip();
        let mut to = vec![1.0_f32; rows.len() * OUTPUTS];
        tiled.vectorize(Product {
            format: tiled,
            rows: Rows {
                words: &words.concat(),
                count: rows.len(),
                stride: INPUTS / F::PER_WORD,
                scales: &scales,
            },
            columns: Panels::of_weights::<F>(weights, INPUTS).view(),
            epilogue: Residual {
                bias: &[0.5; OUTPUTS],
                to: &mut to,
                stride: OUTPUTS,
            },
        });
        let bits = |row: &[f32]| row.iter().map(|number| number.to_bits()).collect();
        to.chunks_exact(OUTPUTS).map(bits).collect()
    }

    fn each_is_added_as_if_alone<F: Tileable>(numbers: &[f32], weights: &[f32]) -> Result<(), TestCaseError> {
        let Some(tiled) = Tiled::<F, Emulated>::detect() else {
            return Ok(());
        };
        let rows: Vec<_> = numbers.chunks_exact(INPUTS).collect();
        let alone: Vec<_> = rows
            .iter()
            .flat_map(|&row| added(tiled, &[row], weights))
            .collect();
        prop_assert_eq!(added(tiled, &rows, weights), alone);
        Ok(())
    }

    fn rows() -> impl Strategy<Value = Vec<f32>> {
        (1..70_usize).prop_flat_map(|rows| prop::collection::vec(-3_f32..3.0, rows * INPUTS))
    }

    fn weights() -> impl Strategy<Value = Vec<f32>> {
        prop::collection::vec(-1_f32..1.0, INPUTS * OUTPUTS)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn each_row_is_taken_once_and_has_the_bits_that_it_has_alone(numbers in rows(), weights in weights()) {
            each_is_added_as_if_alone::<Bf16>(&numbers, &weights)?;
            each_is_added_as_if_alone::<Int8>(&numbers, &weights)?;
        }
    }

    /// Says so on a CPU that has none, past the capture of output.
    fn are_as_emulated<F: Tileable>(of: &str) {
        let (Some(tiled), Some(emulated)) = (Tiled::<F, Amx>::detect(), Tiled::<F, Emulated>::detect())
        else {
            writeln!(std::io::stderr(), "this CPU has no tiles for {of}: not tested")
                .expect("stderr is open");
            return;
        };
        TestRunner::default()
            .run(&(rows(), weights()), |(numbers, weights)| {
                let rows: Vec<_> = numbers.chunks_exact(INPUTS).collect();
                prop_assert_eq!(added(tiled, &rows, &weights), added(emulated, &rows, &weights));
                Ok(())
            })
            .unwrap();
    }

    #[test]
    fn tiles_of_the_cpu_give_the_bits_of_emulated_ones() {
        are_as_emulated::<Bf16>("bf16");
        are_as_emulated::<Int8>("int8");
    }
}
