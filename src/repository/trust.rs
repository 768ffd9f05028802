//! Who may sign what, and to whom data is encrypted: the trust chain under the root key (FORMAT.md §2.2).

use anyhow::{Context, Result, ensure};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::agefile::{self, Identity, Recipient};
use super::history;
use super::layout::{self, Hash, SourceName};
use super::signed::{PublicKey, SignedLine, SigningKey};
use super::{FORMAT, check_format};
use crate::bridge::Store;
use crate::error::{Failure, Kind, kind_of};
use crate::storage::{self, Key};

#[derive(Debug, Serialize, Deserialize)]
struct RepositoryLine {
    r#type: String,
    format: u32,
    id: String,
    created: Timestamp,
    root: PublicKey,
}

/// One record of the trust chain. Its maker gives recipients, keys or revocations; [`Trust::append`] fills in the rest.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct TrustRecord {
    pub r#type: String,
    pub format: u32,
    pub repository: String,
    pub n: u64,
    pub previous: String,
    pub issued: Timestamp,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub recipients: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub keys: Vec<Certificate>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub revoked: Vec<Revocation>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub confirmed: Vec<Confirmation>,
}

/// A commit whose times are right, although the store's contradict them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Confirmation {
    pub source: SourceName,
    pub seq: u64,
    pub commit: Hash,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    Host,
    Drill,
    Keeper,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Certificate {
    pub role: Role,
    pub name: String,
    pub key: PublicKey,
    /// The host's index recipient.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub index: Option<String>,
    /// Sources that the key may sign for; `*` for all.
    pub sources: Vec<String>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Revocation {
    pub key: String,
    pub from: Timestamp,
}

/// The trust chain as verified under the root.
#[derive(Debug, Clone)]
pub struct Trust {
    pub id: String,
    pub root: PublicKey,
    /// Number of the record that set the recipients now in force.
    pub epoch: u64,
    pub recipients: Vec<String>,
    pub certificates: Vec<Certificate>,
    revoked: Vec<Revocation>,
    confirmed: Vec<Confirmation>,
    head: (u64, Hash),
}

impl Trust {
    /// Writes `repository.json` and the first record. Fails if there is a repository already.
    pub fn create(store: &Store, root: &SigningKey, first: TrustRecord, now: Timestamp) -> Result<Trust> {
        let mut id = [0u8; 16];
        aws_lc_rs::rand::fill(&mut id).map_err(|_| anyhow::anyhow!("draw random bytes"))?;
        let id: String = id.iter().map(|b| format!("{b:02x}")).collect();
        let line = RepositoryLine {
            r#type: "repository".into(),
            format: FORMAT,
            id: id.clone(),
            created: now,
            root: root.public(),
        };
        let body = root.sign_line(&line)?;
        let hash = Hash::of(&body);
        store.create(&layout::repository(), body.into(), &hash.0).map_err(|e| match e.kind {
            storage::Kind::AlreadyExists => Failure::new(
                Kind::Usage,
                format!("there is a repository at {} already", store.place()),
                "Nothing was changed. Use it with its own keys, or choose an empty place.",
            ),
            _ => anyhow::Error::new(e).context("create repository.json"),
        })?;
        let mut trust = Trust::before_any(id, root.public(), hash);
        trust.append(store, root, first, now)?;
        Ok(trust)
    }

    /// Adds a record: new recipients, certificates or revocations.
    pub fn append(&mut self, store: &Store, root: &SigningKey, record: TrustRecord, now: Timestamp) -> Result<()> {
        ensure!(root.public() == self.root, "sign a trust record with a key that is not the root's");
        let n = self.head.0 + 1;
        let record = TrustRecord {
            r#type: "trust".into(),
            format: FORMAT,
            repository: self.id.clone(),
            n,
            previous: self.head.1.to_string(),
            issued: now,
            ..record
        };
        let body = root.sign_line(&record)?;
        let hash = Hash::of(&body);
        store.create(&layout::trust(n), body.into(), &hash.0).context("create a trust record")?;
        self.apply(record, hash);
        Ok(())
    }

    /// What `repository.json`, of this hash, says without any trust record.
    fn before_any(id: String, root: PublicKey, hash: Hash) -> Trust {
        Trust {
            id,
            root,
            epoch: 0,
            recipients: Vec::new(),
            certificates: Vec::new(),
            revoked: Vec::new(),
            confirmed: Vec::new(),
            head: (0, hash),
        }
    }

    /// Reads and verifies the chain. `pin` is the root's key id as the reader knows it; `None` trusts what is found.
    pub fn load(store: &Store, pin: Option<&str>) -> Result<Trust> {
        let written = history::of(store, &layout::repository()).context("read repository.json")?;
        if written.versions.is_empty() {
            return Err(Failure::new(
                Kind::NoRepository,
                format!("there is no repository at {}", store.place()),
                match pin {
                    // Somebody knew one there.
                    Some(_) => {
                        "Nothing was done. It was there before: is the disk mounted, and the address right? Do not make a new one; what is stored \
                         is wherever the old one is."
                    }
                    None => "Check the address. `init` (or `protect`) creates one.",
                },
            ));
        }
        let (line, hash) = written.read(store, |body| Ok((read_repository(store, pin, body)?, Hash::of(body))))?;
        let mut trust = Trust::before_any(line.id, line.root, hash);
        let listed = history::list(store, layout::TRUST).context("list trust records")?;
        for (n, written) in (1..).zip(listed.iter().filter(|w| !w.versions.is_empty())) {
            let read = written.read(store, |body| trust.next(n, &written.key, body));
            let (record, hash) = read.with_context(|| format!("verify trust record {n}"))?;
            trust.apply(record, hash);
        }
        ensure!(trust.epoch > 0, "the repository names no recipients: its first trust record is missing");
        Ok(trust)
    }

    /// Verifies record `n`, which lies at `key`, as the one after those read so far.
    fn next(&self, n: u64, key: &Key, body: &[u8]) -> Result<(TrustRecord, Hash)> {
        ensure!(*key == layout::trust(n), "there is none, only {key}");
        let signed = SignedLine::parse(body)?;
        ensure!(signed.key == self.root, "not signed by the root key");
        check_format(signed.format()?, "the trust record")?;
        let record: TrustRecord = signed.decode()?;
        ensure!(record.r#type == "trust" && record.repository == self.id && record.n == n, "belongs elsewhere");
        ensure!(record.previous == self.head.1.to_string(), "does not follow the record before it");
        Ok((record, Hash::of(body)))
    }

    fn apply(&mut self, record: TrustRecord, hash: Hash) {
        if !record.recipients.is_empty() {
            self.epoch = record.n;
            self.recipients = record.recipients;
        }
        self.certificates.extend(record.keys);
        self.revoked.extend(record.revoked);
        self.confirmed.extend(record.confirmed);
        self.head = (record.n, hash);
    }

    /// Whether `key` may sign as `role` for `source` something begun at `at`.
    pub fn may_sign(&self, key: &PublicKey, role: Role, source: &SourceName, at: Timestamp) -> bool {
        let id = key.id();
        let revoked = self.revoked.iter().any(|r| r.key == id && at >= r.from);
        let covers = |c: &Certificate| c.sources.iter().any(|s| s == "*" || s == source.as_str());
        !revoked && self.certificates.iter().any(|c| c.role == role && c.key == *key && covers(c))
    }

    /// Whether the root's holder has confirmed the times of a commit.
    pub fn confirms(&self, source: &SourceName, seq: u64, commit: Hash) -> bool {
        self.confirmed.iter().any(|c| c.source == *source && c.seq == seq && c.commit == commit)
    }

    /// The recovery recipients of the present epoch.
    pub fn recovery_recipients(&self) -> Result<Vec<Recipient>> {
        self.recipients.iter().map(|r| parse_recipient(r)).collect()
    }

    /// That `identities` open what is sealed to the recipients in force. With another key, every object would look damaged.
    pub fn require_reader(&self, identities: &[Identity]) -> Result<()> {
        let mut sealed = agefile::seal(&self.recovery_recipients()?, b"blackstart canary")?.bytes;
        agefile::open(&mut sealed, identities).map(drop).map_err(|e| match kind_of(&e) {
            Kind::WrongKey => Failure::new(
                Kind::WrongKey,
                "the key file is not one of this repository: it cannot decrypt what is sealed to its recipients",
                "Nothing was read or written, and nothing is said of the backup. Give the recovery key of this repository: --identity FILE.",
            ),
            _ => e.context("try the recovery key"),
        })
    }

    /// The certificate of a host's signing key.
    pub fn certificate(&self, key: &PublicKey, role: Role) -> Option<&Certificate> {
        self.certificates.iter().find(|c| c.role == role && c.key == *key)
    }
}

fn read_repository(store: &Store, pin: Option<&str>, body: &[u8]) -> Result<RepositoryLine> {
    let signed = SignedLine::parse(body).context("verify repository.json")?;
    check_format(signed.format()?, "repository.json")?;
    let line: RepositoryLine = signed.decode().context("read repository.json")?;
    ensure!(
        line.r#type == "repository" && line.root == signed.key,
        "repository.json is not signed by its own root key"
    );
    if let Some(pin) = pin
        && pin != line.root.id()
    {
        return Err(Failure::new(
            Kind::WrongKey,
            format!("the repository at {} has root key {}, not {pin}", store.place(), line.root.id()),
            "Nothing was read or written. Either the address is wrong or somebody has replaced the repository.",
        ));
    }
    Ok(line)
}

pub fn parse_recipient(text: &str) -> Result<Recipient> {
    text.parse().map_err(|e: &str| {
        Failure::new(
            Kind::Config,
            format!("{text:?} is not an age X25519 recipient: {e}"),
            "Recipients begin with `age1`; plugin and post-quantum recipients are not supported yet.",
        )
    })
}
