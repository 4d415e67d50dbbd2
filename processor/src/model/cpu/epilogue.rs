//! What becomes of values while they are still in registers, and of rows while they are still in the cache.

use super::{
    super::bert::Activation,
    format::Format,
    isa::{Isa, Work, sum_of},
    operand::RowsMut,
};

/// Takes the values of a product, a vector of a row at a time.
pub(super) trait Epilogue<I: Isa> {
    /// Has brought nearer what [`Epilogue::take`] will read and write, many products later.
    #[inline(always)]
    fn expect(&self, _: I, _row: usize, _column: usize) {}

    fn take(&mut self, isa: I, row: usize, column: usize, values: I::Vector);
}

/// Writes them down as they are.
pub(super) struct Store<'a> {
    /// From the first row's first number on.
    pub(super) to: &'a mut [f32],
    pub(super) stride: usize,
}

/// Multiplies each row by a number of its own, and writes them down in a format.
pub(super) struct Scale<'a, F> {
    pub(super) by: &'a [f32],
    pub(super) format: F,
    /// From the first row on.
    pub(super) to: &'a mut [u32],
    pub(super) stride: usize,
    /// Where the first column stands there …
    pub(super) column: usize,
    /// … and how many are more than filling. The last vector of them is written whole.
    pub(super) columns: usize,
}

/// Adds a bias, and writes them down.
pub(super) struct Bias<'a> {
    pub(super) bias: &'a [f32],
    pub(super) to: &'a mut [f32],
    pub(super) stride: usize,
}

/// Adds a bias, and adds them to what is there.
pub(super) struct Residual<'a> {
    pub(super) bias: &'a [f32],
    pub(super) to: &'a mut [f32],
    pub(super) stride: usize,
}

/// Adds a bias, and writes down in a format what the activation makes of them.
pub(super) struct Activate<'a, F> {
    pub(super) bias: &'a [f32],
    pub(super) activation: Activation,
    pub(super) format: F,
    pub(super) to: RowsMut<'a>,
}

impl<I: Isa> Epilogue<I> for Store<'_> {
    #[inline(always)]
    fn take(&mut self, isa: I, row: usize, column: usize, values: I::Vector) {
        isa.store(values, &mut self.to[row * self.stride + column..]);
    }
}

impl<F: Format> Epilogue<F::Isa> for Scale<'_, F> {
    #[inline(always)]
    fn take(&mut self, isa: F::Isa, row: usize, column: usize, values: <F::Isa as Isa>::Vector) {
        if column >= self.columns {
            return;
        }
        let values = isa.mul(values, isa.splat(self.by[row]));
        let to = &mut self.to[row * self.stride..];
        self.format.write(values, self.column + column, to);
    }
}

impl<I: Isa> Epilogue<I> for Bias<'_> {
    #[inline(always)]
    fn expect(&self, isa: I, row: usize, column: usize) {
        isa.prefetch(&self.to[row * self.stride + column]);
    }

    #[inline(always)]
    fn take(&mut self, isa: I, row: usize, column: usize, values: I::Vector) {
        let values = isa.add(values, isa.load(&self.bias[column..]));
        isa.store(values, &mut self.to[row * self.stride + column..]);
    }
}

impl<I: Isa> Epilogue<I> for Residual<'_> {
    #[inline(always)]
    fn expect(&self, isa: I, row: usize, column: usize) {
        isa.prefetch(&self.to[row * self.stride + column]);
    }

    #[inline(always)]
    fn take(&mut self, isa: I, row: usize, column: usize, values: I::Vector) {
        let values = isa.add(values, isa.load(&self.bias[column..]));
        let to = &mut self.to[row * self.stride + column..];
        isa.store(isa.add(values, isa.load(to)), to);
    }
}

impl<F: Format> Epilogue<F::Isa> for Activate<'_, F> {
    #[inline(always)]
    fn take(&mut self, isa: F::Isa, row: usize, column: usize, values: <F::Isa as Isa>::Vector) {
        let values = isa.add(values, isa.load(&self.bias[column..]));
        let values = activate(isa, self.activation, values);
        let to = &mut self.to.words[row * self.to.stride..];
        self.format.write(values, column, to);
    }
}

#[inline(always)]
fn activate<I: Isa>(isa: I, activation: Activation, x: I::Vector) -> I::Vector {
    match activation {
        Activation::Gelu => gelu(isa, x),
        Activation::GeluTanh => gelu_tanh(isa, x),
        Activation::Relu => isa.max(isa.splat(0.0), x),
    }
}

/// `x / 2 * (1 + erf(x / √2))`.
#[inline(always)]
fn gelu<I: Isa>(isa: I, x: I::Vector) -> I::Vector {
    let half = isa.mul(x, isa.splat(0.5));
    isa.fma(
        half,
        erf(isa, isa.mul(x, isa.splat(std::f32::consts::FRAC_1_SQRT_2))),
        half,
    )
}

/// `x / 2 * (1 + tanh(u))` with `u = √(2/π) (x + 0.044715 x³)`, which is `x / (1 + exp(-2 u))`.
#[inline(always)]
fn gelu_tanh<I: Isa>(isa: I, x: I::Vector) -> I::Vector {
    let cubed = isa.mul(isa.mul(x, x), x);
    let u = isa.mul(
        isa.fma(cubed, isa.splat(0.044_715), x),
        isa.splat(-2.0 * 0.797_884_6),
    );
    isa.div(x, isa.add(isa.splat(1.0), exp(isa, u)))
}

/// The error function to 1e-7, as a quotient of two polynomials, odd and even, in `x` between -4 and 4. They are those of
/// Eigen (<https://gitlab.com/libeigen/eigen/-/blob/3.4.0/unsupported/Eigen/src/SpecialFunctions/SpecialFunctionsImpl.h>).
#[inline(always)]
fn erf<I: Isa>(isa: I, x: I::Vector) -> I::Vector {
    const ODD: [f32; 7] = [
        -2.726_142e-10,
        2.770_681_4e-8,
        -2.101_024e-6,
        -5.692_506_4e-5,
        -7.349_906e-4,
        -2.954_6e-3,
        -1.609_603_3e-2,
    ];
    const EVEN: [f32; 5] = [
        -1.456_607_2e-5,
        -2.133_740_6e-4,
        -1.682_827e-3,
        -7.373_329e-3,
        -1.426_473_9e-2,
    ];
    let x = isa.max(isa.splat(-4.0), isa.min(isa.splat(4.0), x));
    let squared = isa.mul(x, x);
    isa.div(
        isa.mul(x, polynomial(isa, squared, ODD)),
        polynomial(isa, squared, EVEN),
    )
}

/// `exp(x)` to two units in the last place, of what is at most 88; below -87 it is that of -87.
#[inline(always)]
pub(super) fn exp<I: Isa>(isa: I, x: I::Vector) -> I::Vector {
    /// `1 / k!` for k from 6 down to 0: the series, of what is at most ln 2 / 2.
    const SERIES: [f32; 7] = [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0];
    // ln 2 in two parts, the first with so few bits that a whole number times it is exact.
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    let x = isa.max(isa.splat(-87.0), isa.min(isa.splat(88.0), x));
    let exponent = isa.round(isa.mul(x, isa.splat(std::f32::consts::LOG2_E)));
    let rest = isa.fma(exponent, isa.splat(-LN_2_HIGH), x);
    let rest = isa.fma(exponent, isa.splat(-LN_2_LOW), rest);
    isa.times_power_of_two(polynomial(isa, rest, SERIES), exponent)
}

/// By Horner, from the highest power down.
#[inline(always)]
fn polynomial<I: Isa, const N: usize>(isa: I, x: I::Vector, factors: [f32; N]) -> I::Vector {
    let mut sum = isa.splat(factors[0]);
    for &factor in &factors[1..] {
        sum = isa.fma(sum, x, isa.splat(factor));
    }
    sum
}

/// Layer normalisation of each row in its place, and in a format beside it.
pub(super) struct Normalise<'a, F> {
    pub(super) format: F,
    pub(super) rows: &'a mut [f32],
    pub(super) stride: usize,
    /// As many rows.
    pub(super) to: RowsMut<'a>,
    pub(super) norm: &'a Norm,
}

/// The weights of a layer normalisation.
pub(super) struct Norm {
    /// One for each column, and zeros up to a multiple of 64.
    pub(super) weight: Vec<f32>,
    /// As many.
    pub(super) bias: Vec<f32>,
    /// How many columns there are.
    pub(super) width: usize,
    pub(super) epsilon: f32,
}

impl<F: Format> Work for Normalise<'_, F> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Self { format, to, norm, .. } = self;
        let columns = norm.weight.len();
        let rows = self.rows.chunks_mut(self.stride);
        for ((row, to), scale) in rows.zip(to.words.chunks_mut(to.stride)).zip(to.scales) {
            normalise(format, &mut row[..columns], to, norm);
            *scale = format.settle(columns, to);
        }
    }
}

/// `row` is zero where it is filled up, and stays so.
#[inline(always)]
fn normalise<F: Format>(format: F, row: &mut [f32], to: &mut [u32], norm: &Norm) {
    let (isa, numbers) = (format.isa(), &row[..norm.width]);
    let mean = sum_of(isa, numbers, |x| x, |x| x) / norm.width as f32;
    let means = isa.splat(mean);
    let squared = |x| {
        let off = isa.sub(x, means);
        isa.mul(off, off)
    };
    let variance = sum_of(isa, numbers, squared, |x| (x - mean) * (x - mean)) / norm.width as f32;
    let by = isa.splat(1.0 / (variance + norm.epsilon).sqrt());
    for at in (0..row.len()).step_by(<F::Isa as Isa>::LANES) {
        let off = isa.mul(isa.sub(isa.load(&row[at..]), means), by);
        let values = isa.fma(off, isa.load(&norm.weight[at..]), isa.load(&norm.bias[at..]));
        isa.store(values, &mut row[at..]);
        format.write(values, at, to);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{
        super::{
            format::Single,
            isa::{Avx2, Avx512, as_floats},
            operand::Operand,
            panels::PADDING,
        },
        *,
    };

    struct Each<I, W> {
        isa: I,
        values: Vec<f32>,
        with: W,
    }

    trait Function<I: Isa> {
        fn of(&self, isa: I, x: I::Vector) -> I::Vector;
    }

    struct Exp;
    impl<I: Isa> Function<I> for Exp {
        #[inline(always)]
        fn of(&self, isa: I, x: I::Vector) -> I::Vector {
            exp(isa, x)
        }
    }

    impl<I: Isa> Function<I> for Activation {
        #[inline(always)]
        fn of(&self, isa: I, x: I::Vector) -> I::Vector {
            activate(isa, *self, x)
        }
    }

    impl<I: Isa, W: Function<I>> Work for Each<I, W> {
        type Output = Vec<f32>;

        #[inline(always)]
        fn run(mut self) -> Vec<f32> {
            for values in self.values.chunks_exact_mut(I::LANES) {
                let result = self.with.of(self.isa, self.isa.load(values));
                self.isa.store(result, values);
            }
            self.values
        }
    }

    /// The error function by its series, which converges for any number, and is exact to 1e-10 up to 4.
    fn erf(x: f64) -> f64 {
        let (mut term, mut sum) = (x, x);
        for n in 1..100 {
            term *= -x * x / f64::from(n);
            sum += term / f64::from(2 * n + 1);
        }
        if x.abs() > 4.0 {
            x.signum()
        } else {
            sum * std::f64::consts::FRAC_2_SQRT_PI
        }
    }

    fn agrees<I: Isa>(values: &[f32]) -> Result<(), TestCaseError> {
        let Some(isa) = I::detect() else { return Ok(()) };
        let gelu = |x: f64| x / 2.0 * (1.0 + erf(x * std::f64::consts::FRAC_1_SQRT_2));
        let gelu_tanh = |x: f64| {
            let u = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x.powi(3));
            x / 2.0 * (1.0 + u.tanh())
        };
        let near = |found: Vec<f32>, wanted: &dyn Fn(f64) -> f64| {
            for (&x, found) in values.iter().zip(found) {
                let wanted = wanted(f64::from(x));
                let off = (f64::from(found) - wanted).abs();
                prop_assert!(
                    off <= 4e-7 * wanted.abs().max(1.0).max(f64::from(x.abs())),
                    "{x} became {found}, not {wanted}"
                );
            }
            Ok(())
        };
        let values = values.to_vec();
        near(
            isa.vectorize(Each {
                isa,
                values: values.clone(),
                with: Activation::Gelu,
            }),
            &gelu,
        )?;
        near(
            isa.vectorize(Each {
                isa,
                values: values.clone(),
                with: Activation::GeluTanh,
            }),
            &gelu_tanh,
        )?;
        near(
            isa.vectorize(Each {
                isa,
                values: values.clone(),
                with: Activation::Relu,
            }),
            &|x| x.max(0.0),
        )?;
        near(
            isa.vectorize(Each {
                isa,
                values,
                with: Exp,
            }),
            &f64::exp,
        )
    }

    proptest! {
        #[test]
        fn functions_are_those_of_64_bits(values in prop::collection::vec(-12_f32..12.0, 64)) {
            agrees::<Avx512>(&values)?;
            agrees::<Avx2>(&values)?;
        }

        #[test]
        fn a_row_of_any_width_is_normalised(values in prop::collection::vec(-9_f32..9.0, 2..200), shift in -30_f32..30.0) {
            fn agrees<I: Isa>(values: &[f32]) -> Result<(), TestCaseError> {
                let Some(format) = Single::<I>::detect() else { return Ok(()) };
                let columns = values.len().next_multiple_of(PADDING);
                let filled = |mut numbers: Vec<f32>| {
                    numbers.resize(columns, 0.0);
                    numbers
                };
                let (weight, bias) = (filled(vec![2.0; values.len()]), filled(vec![0.5; values.len()]));
                let norm = Norm { weight, bias, width: values.len(), epsilon: 1e-3 };
                let mut operand = Operand::new::<Single<I>>(columns);
                operand.reserve_rows(1);
                let (mut rows, to) = (filled(values.to_vec()), operand.rows_mut(0..1));
                format.vectorize(Normalise { format, rows: &mut rows, stride: columns, to, norm: &norm });
                prop_assert_eq!(&rows[..], as_floats(&operand.rows(0..1).words[..columns]));
                prop_assert!(rows[values.len()..].iter().all(|&filler| filler == 0.0));
                let width = values.len() as f64;
                let mean = values.iter().map(|&x| f64::from(x)).sum::<f64>() / width;
                let variance = values.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>() / width;
                for (&x, &found) in values.iter().zip(&rows) {
                    let wanted = (f64::from(x) - mean) / (variance + 1e-3).sqrt() * 2.0 + 0.5;
                    prop_assert!((f64::from(found) - wanted).abs() < 1e-3 , "{found}, not {wanted}");
                }
                Ok(())
            }
            let values: Vec<f32> = values.iter().map(|x| x + shift).collect();
            agrees::<Avx512>(&values)?;
            agrees::<Avx2>(&values)?;
        }
    }
}
