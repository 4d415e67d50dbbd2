//! Who a producer is, by a token that somebody trusted has signed: a function of the token, the keys and a time.

mod bearer;
mod keys;

use std::{collections::BTreeSet, path::PathBuf};

use jsonwebtoken::{Algorithm, Validation, errors::ErrorKind};
use schemas::{Door, InvalidName, Principal, ReasonCode, Role, Tenant, User};
use serde::{Deserialize, Serialize};

pub use bearer::Bearer;
pub(crate) use bearer::without_token;
pub use keys::{InvalidKeys, Keys};

/// The claim that names whoever has the token.
const SUBJECT: &str = "sub";
/// Clocks that differ by more than this are wrong.
const LEEWAY_S_MAX: u32 = 300;

/// Where a token is demanded, and what is asked of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Where a job is nobody's without a token.
    pub required: Required,
    /// The file of the keys.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keys: Option<PathBuf>,
    /// What `iss` must say; none takes any, since the keys are the issuer's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub issuer: Option<String>,
    /// What `aud` must say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub audience: Option<String>,
    /// The claim that names the tenant.
    pub tenant_claim: String,
    /// The claim that names the roles of whoever has the token; none: it is the tenant that has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub roles_claim: Option<String>,
    /// How far the clock of whoever signs may be from that of whoever checks.
    pub leeway_s: u32,
}

/// The doors at which a token is demanded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Required {
    /// None: on the shared topic, a job is believed.
    Nowhere,
    /// The shared topic and the HTTP door.
    Shared,
    /// The tenants' own topics too.
    Everywhere,
}

impl Config {
    /// The file of the keys, where a token is demanded somewhere.
    ///
    /// # Errors
    /// What is missing, or too much, as a sentence about the setting.
    pub fn check(&self) -> Result<Option<&PathBuf>, String> {
        if self.leeway_s > LEEWAY_S_MAX {
            return Err(format!(
                "identity.leeway_s is {}, and {LEEWAY_S_MAX} is the most: for that long an expired token is still good",
                self.leeway_s
            ));
        }
        if self.required == Required::Nowhere {
            return Ok(None);
        }
        if self.audience.is_none() {
            return Err(
                "identity.audience is not set: without it a token that was meant for another service would be good here"
                    .to_owned(),
            );
        }
        let missing = "identity.keys is not set: name the file of the public keys, in PEM or as a JWKS";
        self.keys.as_ref().map(Some).ok_or(missing.to_owned())
    }
}

/// What is known of those who sign, and where they are asked for. It changes with the keys.
#[derive(Debug)]
pub struct Identity {
    required: Required,
    tenant_claim: String,
    roles_claim: Option<String>,
    leeway_s: u32,
    keys: Keys,
    validation: Validation,
}

impl Identity {
    /// By `config` and these keys.
    pub fn new(config: &Config, keys: Keys) -> Self {
        let mut validation = Validation::new(Algorithm::EdDSA);
        validation.required_spec_claims.clear();
        // It would look at a clock.
        (validation.validate_exp, validation.validate_nbf) = (false, false);
        let mut demand = |claim: &str| validation.required_spec_claims.insert(claim.to_owned());
        demand("exp");
        if config.issuer.is_some() {
            demand("iss");
        }
        if config.audience.is_some() {
            demand("aud");
        }
        validation.iss = config.issuer.clone().map(|issuer| [issuer].into());
        validation.aud = config.audience.clone().map(|audience| [audience].into());
        Self {
            required: config.required,
            tenant_claim: config.tenant_claim.clone(),
            roles_claim: config.roles_claim.clone(),
            leeway_s: config.leeway_s,
            keys,
            validation,
        }
    }

    /// No token is demanded anywhere.
    pub fn nowhere() -> Self {
        let config = Config {
            required: Required::Nowhere,
            keys: None,
            issuer: None,
            audience: None,
            tenant_claim: String::new(),
            roles_claim: None,
            leeway_s: 0,
        };
        Self::new(&config, Keys::none())
    }

    /// Whether a job that came through `door` is nobody's without a token.
    pub fn demands(&self, door: &Door) -> bool {
        match self.required {
            Required::Nowhere => false,
            Required::Shared => *door == Door::Shared,
            Required::Everywhere => true,
        }
    }

    /// Whether tokens are looked at anywhere.
    pub fn demands_anywhere(&self) -> bool {
        self.required != Required::Nowhere
    }

    /// The tenant whose token it is, as of `as_of_ms`, and who of it has the token, where it tells of roles.
    ///
    /// # Errors
    /// Why it proves nothing.
    pub fn prove_tenant(&self, bearer: &Bearer, as_of_ms: i64) -> Result<(Tenant, Option<User>), Refusal> {
        match self.prove(bearer, as_of_ms)? {
            Proven::Tenant(tenant) => Ok((tenant, None)),
            Proven::User(user) => match user.tenant.clone() {
                Some(tenant) => Ok((tenant, Some(user))),
                None => Err(Refusal::Claim(self.tenant_claim.clone())),
            },
        }
    }

    /// Whose token it is, as of `as_of_ms`, in milliseconds since 1970 UTC.
    ///
    /// # Errors
    /// Why it proves nothing.
    pub fn prove(&self, bearer: &Bearer, as_of_ms: i64) -> Result<Proven, Refusal> {
        let claims = self.signed_claims(bearer.token())?;
        let time = |claim: &'static str| match claims.get(claim) {
            None => Ok(None),
            Some(value) => value.as_f64().map(Some).ok_or(Refusal::Claim(claim.to_owned())),
        };
        let (now_s, leeway_s) = (as_of_ms as f64 / 1e3, f64::from(self.leeway_s));
        let expires_s = time("exp")?.ok_or(Refusal::Claim("exp".to_owned()))?;
        if now_s >= expires_s + leeway_s {
            return Err(Refusal::Expired {
                ago_s: (now_s - expires_s) as u64,
            });
        }
        if let Some(begins_s) = time("nbf")?
            && now_s + leeway_s < begins_s
        {
            return Err(Refusal::NotYet);
        }
        self.named(&claims)
    }

    /// Whom claims name that are good.
    fn named(&self, claims: &Claims) -> Result<Proven, Refusal> {
        let text = |claim: &str| match claims.get(claim) {
            None => Ok(None),
            Some(value) => value
                .as_str()
                .map(Some)
                .ok_or_else(|| Refusal::Claim(claim.to_owned())),
        };
        let tenant = text(&self.tenant_claim)?.map(Tenant::new).transpose();
        let tenant = tenant.map_err(Refusal::Tenant)?;
        let Some(roles_claim) = &self.roles_claim else {
            let missing = || Refusal::Claim(self.tenant_claim.clone());
            return tenant.map(Proven::Tenant).ok_or_else(missing);
        };
        let roles = claims.get(roles_claim).map_or(Some(BTreeSet::new()), roles_of);
        Ok(Proven::User(User {
            name: text(SUBJECT)?.unwrap_or_default().to_owned(),
            tenant,
            roles: roles.ok_or_else(|| Refusal::Claim(roles_claim.clone()))?,
        }))
    }

    /// What somebody trusted has signed, for us, at some time.
    fn signed_claims(&self, token: &str) -> Result<Claims, Refusal> {
        let header = jsonwebtoken::decode_header(token).map_err(|_| Refusal::Malformed)?;
        if !matches!(header.alg, Algorithm::RS256 | Algorithm::ES256 | Algorithm::EdDSA) {
            return Err(Refusal::Algorithm);
        }
        if header.crit.is_some() {
            return Err(Refusal::Critical);
        }
        let validation = Validation {
            algorithms: vec![header.alg],
            ..self.validation.clone()
        };
        let mut refusal = Refusal::UnknownKey;
        for key in self.keys.fitting(header.alg, header.kid.as_deref()) {
            match jsonwebtoken::decode(token, key, &validation) {
                Ok(decoded) => return Ok(decoded.claims),
                Err(error) => refusal = Refusal::from(error.into_kind()),
            }
            if !matches!(refusal, Refusal::Signature) {
                break;
            }
        }
        Err(refusal)
    }
}

type Claims = serde_json::Map<String, serde_json::Value>;

/// The roles among the words of a claim, a list or a text with spaces; those of other systems are passed over.
fn roles_of(claim: &serde_json::Value) -> Option<BTreeSet<Role>> {
    use serde_json::Value;
    match claim {
        Value::String(words) => Some(words.split_whitespace().filter_map(Role::named).collect()),
        Value::Array(words) => {
            let words: Option<Vec<&str>> = words.iter().map(Value::as_str).collect();
            Some(words?.into_iter().filter_map(Role::named).collect())
        }
        _ => None,
    }
}

/// Whom a token names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Proven {
    /// A tenant, of whom nothing else is asked.
    Tenant(Tenant),
    /// Somebody with roles.
    User(User),
}

impl From<Proven> for Principal {
    fn from(proven: Proven) -> Self {
        match proven {
            Proven::Tenant(tenant) => Self::Tenant(tenant),
            Proven::User(user) => Self::User(user),
        }
    }
}

/// Why a job or a request has proven nothing. It never repeats a token.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// There is none.
    #[error("there is no token: send `Bearer <token>` in the header `authorization`")]
    Missing,
    /// There are several, and one could be looked at here and another elsewhere.
    #[error("there is more than one header `authorization`")]
    Repeated,
    /// What is there is none.
    #[error("the header `authorization` is not `Bearer`, a space and a token")]
    NotBearer,
    /// It has more bytes than a token has.
    #[error("the token has more than 8 KiB")]
    TooLong,
    /// It cannot be read.
    #[error("the token is not a JWT in compact form that is signed with RS256, ES256 or EdDSA")]
    Malformed,
    /// It is signed in a way that is not taken.
    #[error("the token is not signed with RS256, ES256 or EdDSA")]
    Algorithm,
    /// It demands something that is not understood here.
    #[error("the token's header has `crit`, and no extension is understood here")]
    Critical,
    /// It is signed with another key, or does not say with which.
    #[error("no key in force has the token's `kid` and `alg`")]
    UnknownKey,
    /// Somebody else has signed it, or it was changed.
    #[error("the token's signature is wrong")]
    Signature,
    /// It lacks a claim.
    #[error("the token's claim `{0}` is missing, or is not what such a claim is")]
    Claim(String),
    /// Somebody else says so.
    #[error("the token's `iss` is not the issuer that is trusted here")]
    Issuer,
    /// It is for another service.
    #[error("the token's `aud` does not name this service")]
    Audience,
    /// Its time has passed.
    #[error("the token had expired {ago_s} s before")]
    Expired {
        /// How long before.
        ago_s: u64,
    },
    /// Its time has not come.
    #[error("the token's `nbf` is still to come")]
    NotYet,
    /// It is good, and whom it names cannot be.
    #[error("the token names no possible tenant: {0}")]
    Tenant(InvalidName),
}

impl Refusal {
    /// The word for programs.
    pub fn code(&self) -> ReasonCode {
        match self {
            Self::Missing => ReasonCode::TokenMissing,
            Self::Expired { .. } => ReasonCode::TokenExpired,
            Self::Tenant(_) => ReasonCode::InvalidTenant,
            _ => ReasonCode::TokenInvalid,
        }
    }
}

impl From<ErrorKind> for Refusal {
    fn from(kind: ErrorKind) -> Self {
        match kind {
            ErrorKind::InvalidSignature => Self::Signature,
            ErrorKind::InvalidIssuer => Self::Issuer,
            ErrorKind::InvalidAudience => Self::Audience,
            ErrorKind::MissingRequiredClaim(claim) => Self::Claim(claim),
            _ => Self::Malformed,
        }
    }
}
