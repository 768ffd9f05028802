//! The sealed part of a commit: what the host and the holder of the recovery key may read, and the store may not.

use anyhow::{Context, Result};
use base64::prelude::{BASE64_STANDARD, Engine};
use serde::{Deserialize, Serialize};

use super::agefile::{self, Identity, Recipient};
use super::snapshot::Snapshot;
use crate::fingerprint::Fingerprint;
use crate::report::{Skip, Stats};

/// Skips listed one by one in a commit; the rest are counted.
pub const SKIPS_LISTED: usize = 100;

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SealedPart {
    pub secrets: Secrets,
    /// The path or address that was read.
    pub root: String,
    /// The number that the next pack of this lineage of layers will get.
    pub next_pack: u64,
    pub stats: Stats,
    pub skipped: Vec<Skip>,
    pub skipped_count: u64,
    /// What the engine said of itself.
    pub facts: serde_json::Value,
    /// Fingerprints of the last good snapshots, the oldest first, with this one's own last unless it is suspect.
    #[serde(default)]
    pub fingerprints: Vec<Fingerprint>,
    /// Why this snapshot is suspect.
    #[serde(default)]
    pub suspicions: Vec<String>,
}

/// The keys of one baseline: they make equal contents recognisable to the host, and to nobody else.
#[derive(Clone, Serialize, Deserialize)]
pub struct Secrets {
    #[serde(with = "secret")]
    pub page: Vec<u8>,
    #[serde(with = "secret")]
    pub chunk: Vec<u8>,
    #[serde(with = "secret")]
    pub gear: Vec<u8>,
}

impl std::fmt::Debug for Secrets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secrets")
    }
}

impl Secrets {
    pub fn generate() -> Result<Secrets> {
        let draw = |n: usize| {
            let mut bytes = vec![0u8; n];
            aws_lc_rs::rand::fill(&mut bytes).map_err(|_| anyhow::anyhow!("draw random bytes"))?;
            anyhow::Ok(bytes)
        };
        Ok(Secrets { page: draw(64)?, chunk: draw(64)?, gear: draw(32)? })
    }

    pub fn gear(&self) -> Result<&[u8; 32]> {
        self.gear.as_slice().try_into().context("the gear key has 32 bytes")
    }
}

impl SealedPart {
    pub fn seal(&self, recipients: &[Recipient]) -> Result<String> {
        let sealed = agefile::seal(recipients, &serde_json::to_vec(self)?)?;
        Ok(BASE64_STANDARD.encode(sealed.bytes))
    }

    pub fn open(snapshot: &Snapshot, identities: &[Identity]) -> Result<SealedPart> {
        let mut stored = BASE64_STANDARD.decode(&snapshot.sealed).context("read the sealed part of a commit")?;
        let plain = agefile::open(&mut stored, identities)?;
        serde_json::from_slice(&plain).context("read the sealed part of a commit")
    }
}

mod secret {
    use base64::prelude::{BASE64_STANDARD, Engine};
    use serde::{Deserialize, Deserializer, Serializer};

    pub fn serialize<S: Serializer>(bytes: &[u8], s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&BASE64_STANDARD.encode(bytes))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Vec<u8>, D::Error> {
        BASE64_STANDARD.decode(String::deserialize(d)?).map_err(serde::de::Error::custom)
    }
}
