//! The public keys that tokens are checked with: a set is good as a whole, or refused. Pure.

use jsonwebtoken::{
    Algorithm, DecodingKey, DecodingKeyKind,
    jwk::{AlgorithmParameters, EllipticCurve, Jwk, JwkSet, KeyAlgorithm, KeyOperations, PublicKeyUse},
};
use serde::Deserialize;

/// A modulus of 2,048 bits. Those of a key in DER come with some bytes around them.
const RSA_BYTES_MIN: usize = 256;
/// An uncompressed point on P-256.
const EC_BYTES: usize = 65;
const ED_BYTES: usize = 32;

/// The keys in force.
#[derive(Debug, Clone)]
pub struct Keys(Vec<Key>);

/// A key is for one algorithm, whatever a token says.
#[derive(Debug, Clone)]
struct Key {
    id: Option<String>,
    algorithm: Algorithm,
    key: DecodingKey,
}

/// Why a text holds no keys.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidKeys {
    /// It is neither of the two forms.
    #[error("it is neither a public key in PEM (`-----BEGIN PUBLIC KEY-----`) nor a JWKS: {0}")]
    Form(String),
    /// It would let whoever reads it sign.
    #[error("it holds a secret, and only public keys belong here: {0}")]
    Secret(&'static str),
    /// One of the keys cannot be used.
    #[error("key {number} cannot be used: {problem}")]
    Key {
        /// Which, from 1.
        number: usize,
        /// Why.
        problem: String,
    },
    /// No key is left.
    #[error("it has no key for RS256, ES256 (P-256) or EdDSA (Ed25519)")]
    None,
}

impl Keys {
    /// Reads one public key in PEM, or a JWKS. Keys of a JWKS that are for something else are passed over, as RFC 7517
    /// asks.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn read(text: &str) -> Result<Self, InvalidKeys> {
        let text = text.trim();
        if text.starts_with("-----BEGIN ") {
            Self::of_pem(text)
        } else {
            Self::of_jwks(text)
        }
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.0.len()
    }

    pub(super) fn none() -> Self {
        Self(Vec::new())
    }

    /// Those that a token may be signed with which names `algorithm` and the key `id`. A key without an id fits any; one
    /// with an id is never guessed.
    pub(super) fn fitting(
        &self,
        algorithm: Algorithm,
        id: Option<&str>,
    ) -> impl Iterator<Item = &DecodingKey> {
        let fits =
            move |key: &&Key| key.algorithm == algorithm && (key.id.is_none() || key.id.as_deref() == id);
        self.0.iter().filter(fits).map(|key| &key.key)
    }

    fn of_pem(text: &str) -> Result<Self, InvalidKeys> {
        if text.contains("PRIVATE KEY") {
            return Err(InvalidKeys::Secret("a private key"));
        }
        if !text.starts_with("-----BEGIN PUBLIC KEY-----") || text.matches("-----BEGIN ").count() > 1 {
            let problem = "of PEM, one public key is taken; for several, write a JWKS";
            return Err(InvalidKeys::Form(problem.to_owned()));
        }
        let (bytes, none) = (text.as_bytes(), Err(InvalidKeys::None));
        let key = DecodingKey::from_rsa_pem(bytes).map(|key| (Algorithm::RS256, key));
        let key = key.or_else(|_| DecodingKey::from_ec_pem(bytes).map(|key| (Algorithm::ES256, key)));
        let key = key.or_else(|_| DecodingKey::from_ed_pem(bytes).map(|key| (Algorithm::EdDSA, key)));
        let Ok((algorithm, key)) = key else { return none };
        Ok(Self(vec![Key::checked(1, None, algorithm, key)?]))
    }

    fn of_jwks(text: &str) -> Result<Self, InvalidKeys> {
        let form = |error: serde_json::Error| InvalidKeys::Form(error.to_string());
        let json: serde_json::Value = serde_json::from_str(text).map_err(form)?;
        let set = JwkSet::deserialize(&json).map_err(form)?;
        let listed = json["keys"].as_array().into_iter().flatten();
        if listed.clone().any(|key| key.get("d").is_some()) {
            return Err(InvalidKeys::Secret("a private key"));
        }
        if listed.clone().any(|key| key["kty"] == "oct") {
            return Err(InvalidKeys::Secret(
                "a symmetric key, with which whoever checks can sign",
            ));
        }
        let mut keys = Vec::new();
        for (number, jwk) in (1..).zip(&set.keys) {
            let Some(algorithm) = algorithm(jwk) else { continue };
            let key = DecodingKey::from_jwk(jwk).map_err(|error| InvalidKeys::Key {
                number,
                problem: error.to_string(),
            })?;
            keys.push(Key::checked(number, jwk.common.key_id.clone(), algorithm, key)?);
        }
        if keys.is_empty() {
            return Err(InvalidKeys::None);
        }
        Ok(Self(keys))
    }
}

impl Key {
    fn checked(
        number: usize,
        id: Option<String>,
        algorithm: Algorithm,
        key: DecodingKey,
    ) -> Result<Self, InvalidKeys> {
        let bytes = match key.kind() {
            DecodingKeyKind::SecretOrDer(bytes) => bytes.len(),
            DecodingKeyKind::RsaModulusExponent { n, .. } => n.iter().skip_while(|byte| **byte == 0).count(),
        };
        let problem = match algorithm {
            Algorithm::RS256 if bytes < RSA_BYTES_MIN => "an RSA key has at least 2048 bits",
            Algorithm::ES256 if bytes != EC_BYTES => "an EC key is a point on P-256",
            Algorithm::EdDSA if bytes != ED_BYTES => "an EdDSA key is one of Ed25519",
            _ => return Ok(Self { id, algorithm, key }),
        };
        Err(InvalidKeys::Key {
            number,
            problem: problem.to_owned(),
        })
    }
}

/// What tokens are signed with by the owner of this key; none where it is not for that, or not one of ours.
fn algorithm(jwk: &Jwk) -> Option<Algorithm> {
    let common = &jwk.common;
    let operations = common.key_operations.as_deref();
    let is_for_signatures = matches!(common.public_key_use, None | Some(PublicKeyUse::Signature))
        && operations.is_none_or(|operations| operations.contains(&KeyOperations::Verify));
    let algorithm = match &jwk.algorithm {
        AlgorithmParameters::RSA(_) => Algorithm::RS256,
        AlgorithmParameters::EllipticCurve(key) if key.curve == EllipticCurve::P256 => Algorithm::ES256,
        AlgorithmParameters::OctetKeyPair(key) if key.curve == EllipticCurve::Ed25519 => Algorithm::EdDSA,
        _ => return None,
    };
    let is_said = common
        .key_algorithm
        .is_none_or(|said| said == KeyAlgorithm::from(algorithm));
    (is_for_signatures && is_said).then_some(algorithm)
}
