//! Which code runs a model on this CPU, and with which numbers.

use super::{CpuPath, Dtype, Fault};

/// What a CPU has to run models with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Offer {
    pub(super) path: CpuPath,
    pub(super) dtypes: Vec<Dtype>,
}

/// Names a path where the configuration leaves it open.
const VARIABLE: &str = "TRIBUTARY_CPU_PATH";
/// What `auto` tries, the fastest first. `int8` is not among them: it does not hold the floor that is stated for `auto`, a
/// cosine to `f32` of 0.9999 in the mean and of 0.999 at worst, to which a test holds the others.
const AUTO: [Dtype; 2] = [Dtype::Bf16, Dtype::F32];

/// The path and the numbers that this CPU runs what is asked for with.
pub(super) fn resolve(path: CpuPath, dtype: Dtype) -> Result<(CpuPath, Dtype), Fault> {
    let path = match (path, std::env::var(VARIABLE)) {
        (CpuPath::Auto, Ok(name)) => named(&name)?,
        (path, _) => path,
    };
    choose(&offers(), path, dtype)
}

fn named(name: &str) -> Result<CpuPath, Fault> {
    let known = [
        CpuPath::Auto,
        CpuPath::Amx,
        CpuPath::Avx512,
        CpuPath::Avx2,
        CpuPath::Candle,
    ];
    known
        .into_iter()
        .find(|path| path.to_string() == name)
        .ok_or_else(|| Fault::Setting {
            problem: format!("{VARIABLE} is `{name}`: it may be {}", list(known)),
        })
}

/// What this CPU has, the fastest first.
pub(super) fn offers() -> Vec<Offer> {
    #[cfg(target_arch = "x86_64")]
    let own = super::cpu::offers();
    #[cfg(not(target_arch = "x86_64"))]
    let own = Vec::new();
    let candle = (CpuPath::Candle, vec![Dtype::F32]);
    let offers = own.into_iter().chain([candle]);
    offers.map(|(path, dtypes)| Offer { path, dtypes }).collect()
}

fn choose(offers: &[Offer], path: CpuPath, dtype: Dtype) -> Result<(CpuPath, Dtype), Fault> {
    if dtype == Dtype::F16 {
        let problem = "dtype `f16` needs CUDA, and the device is the CPU: use `bf16` or `f32`".to_owned();
        return Err(Fault::Setting { problem });
    }
    let allowed = || {
        offers
            .iter()
            .filter(|offer| path == CpuPath::Auto || offer.path == path)
    };
    if allowed().next().is_none() {
        let there = list(offers.iter().map(|offer| offer.path));
        let problem = format!("cpu_path `{path}` needs another CPU: this one has {there}");
        return Err(Fault::Setting { problem });
    }
    let dtypes = match dtype {
        Dtype::Auto => &AUTO[..],
        ref one => std::slice::from_ref(one),
    };
    let having = |dtype: &Dtype| Some((allowed().find(|offer| offer.dtypes.contains(dtype))?.path, *dtype));
    dtypes.iter().find_map(having).ok_or_else(|| {
        let there = list(allowed().flat_map(|offer| &offer.dtypes));
        let problem = format!("dtype `{dtype}` needs another CPU or cpu_path: `{path}` has {there} here");
        Fault::Setting { problem }
    })
}

/// `a`, `b` and so on, each once.
fn list(names: impl IntoIterator<Item = impl ToString>) -> String {
    let mut list: Vec<String> = Vec::new();
    for name in names {
        let name = format!("`{}`", name.to_string());
        if !list.contains(&name) {
            list.push(name);
        }
    }
    list.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offer(path: CpuPath, dtypes: &[Dtype]) -> Offer {
        Offer {
            path,
            dtypes: dtypes.to_vec(),
        }
    }

    fn machine(name: &str) -> Vec<Offer> {
        let candle = offer(CpuPath::Candle, &[Dtype::F32]);
        let avx2 = offer(CpuPath::Avx2, &[Dtype::F32]);
        match name {
            "any" => vec![candle],
            "haswell" => vec![avx2, candle],
            "skylake" => vec![offer(CpuPath::Avx512, &[Dtype::F32]), avx2, candle],
            "zen 4" => vec![
                offer(CpuPath::Avx512, &[Dtype::F32, Dtype::Bf16, Dtype::Int8]),
                avx2,
                candle,
            ],
            _ => vec![
                offer(CpuPath::Amx, &[Dtype::Bf16, Dtype::Int8]),
                offer(CpuPath::Avx512, &[Dtype::F32, Dtype::Bf16, Dtype::Int8]),
                avx2,
                candle,
            ],
        }
    }

    #[test]
    fn what_is_left_open_is_the_fastest_that_the_cpu_has_and_that_stays_close() {
        for (name, f32, auto) in [
            ("any", CpuPath::Candle, (CpuPath::Candle, Dtype::F32)),
            ("haswell", CpuPath::Avx2, (CpuPath::Avx2, Dtype::F32)),
            ("skylake", CpuPath::Avx512, (CpuPath::Avx512, Dtype::F32)),
            ("zen 4", CpuPath::Avx512, (CpuPath::Avx512, Dtype::Bf16)),
            ("sapphire rapids", CpuPath::Avx512, (CpuPath::Amx, Dtype::Bf16)),
        ] {
            let machine = machine(name);
            assert_eq!(
                choose(&machine, CpuPath::Auto, Dtype::F32).unwrap(),
                (f32, Dtype::F32),
                "{name}"
            );
            assert_eq!(
                choose(&machine, CpuPath::Auto, Dtype::Auto).unwrap(),
                auto,
                "{name}"
            );
        }
    }

    #[test]
    fn what_is_named_is_taken_as_named() {
        let machine = machine("sapphire rapids");
        for (path, dtype) in [
            (CpuPath::Candle, Dtype::F32),
            (CpuPath::Avx2, Dtype::F32),
            (CpuPath::Avx512, Dtype::Int8),
            (CpuPath::Amx, Dtype::Int8),
        ] {
            assert_eq!(choose(&machine, path, dtype).unwrap(), (path, dtype));
        }
        let chosen = choose(&machine, CpuPath::Candle, Dtype::Auto).unwrap();
        assert_eq!(chosen, (CpuPath::Candle, Dtype::F32));
    }

    #[test]
    fn what_the_cpu_lacks_is_refused_with_what_there_is() {
        for (name, path, dtype, complaint) in [
            (
                "haswell",
                CpuPath::Avx512,
                Dtype::F32,
                "cpu_path `avx512` needs another CPU: this one has `avx2`, `candle`",
            ),
            (
                "any",
                CpuPath::Avx2,
                Dtype::Auto,
                "cpu_path `avx2` needs another CPU: this one has `candle`",
            ),
            (
                "skylake",
                CpuPath::Auto,
                Dtype::Bf16,
                "dtype `bf16` needs another CPU or cpu_path: `auto` has `f32` here",
            ),
            (
                "zen 4",
                CpuPath::Avx2,
                Dtype::Int8,
                "dtype `int8` needs another CPU or cpu_path: `avx2` has `f32` here",
            ),
            (
                "sapphire rapids",
                CpuPath::Amx,
                Dtype::F32,
                "dtype `f32` needs another CPU or cpu_path: `amx` has `bf16`, `int8` here",
            ),
            (
                "zen 4",
                CpuPath::Auto,
                Dtype::F16,
                "dtype `f16` needs CUDA, and the device is the CPU",
            ),
        ] {
            let fault = choose(&machine(name), path, dtype).unwrap_err().to_string();
            assert!(fault.contains(complaint), "{fault}");
        }
        let fault = named("sse").unwrap_err().to_string();
        assert_eq!(
            fault,
            "TRIBUTARY_CPU_PATH is `sse`: it may be `auto`, `amx`, `avx512`, `avx2`, `candle`"
        );
    }
}
