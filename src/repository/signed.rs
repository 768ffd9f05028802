//! Signed lines: one line of JSON and one OpenSSH signature over exactly that line (FORMAT.md §2.1, OpenSSH's PROTOCOL.sshsig).

use anyhow::{Context, Result, anyhow, ensure};
use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};
use base64::prelude::{BASE64_STANDARD, BASE64_STANDARD_NO_PAD, Engine};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256, Sha512};
use std::fmt;

const NAMESPACE: &[u8] = b"blackstart";
const ALGORITHM: &[u8] = b"ssh-ed25519";

/// An Ed25519 public key, written as OpenSSH does: `ssh-ed25519 AAAA…`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PublicKey([u8; 32]);

impl PublicKey {
    /// The `SHA256:…` fingerprint: the key id of FORMAT.md.
    pub fn id(&self) -> String {
        format!("SHA256:{}", BASE64_STANDARD_NO_PAD.encode(Sha256::digest(self.blob())))
    }

    fn blob(&self) -> Vec<u8> {
        [string(ALGORITHM), string(&self.0)].concat()
    }

    fn from_blob(blob: &[u8]) -> Result<PublicKey> {
        let mut rest = blob;
        ensure!(take_string(&mut rest)? == ALGORITHM, "not an Ed25519 key");
        let key = take_string(&mut rest)?.try_into().context("an Ed25519 key has 32 bytes")?;
        ensure!(rest.is_empty(), "bytes after the key");
        Ok(PublicKey(key))
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ssh-ed25519 {}", BASE64_STANDARD.encode(self.blob()))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.id())
    }
}

impl std::str::FromStr for PublicKey {
    type Err = anyhow::Error;
    fn from_str(text: &str) -> Result<PublicKey> {
        let blob = text.strip_prefix("ssh-ed25519 ").context("not an ssh-ed25519 key")?;
        PublicKey::from_blob(&BASE64_STANDARD.decode(blob.trim()).context("malformed ssh-ed25519 key")?)
    }
}

impl Serialize for PublicKey {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for PublicKey {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<PublicKey, D::Error> {
        String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
    }
}

/// An Ed25519 key that signs. Never printed.
pub struct SigningKey {
    seed: zeroize::Zeroizing<[u8; 32]>,
    pair: Ed25519KeyPair,
}

impl SigningKey {
    pub fn generate() -> Result<SigningKey> {
        let mut seed = [0u8; 32];
        aws_lc_rs::rand::fill(&mut seed).map_err(|_| anyhow!("draw random bytes for a signing key"))?;
        SigningKey::from_seed(seed)
    }

    pub fn from_seed(seed: [u8; 32]) -> Result<SigningKey> {
        let pair = Ed25519KeyPair::from_seed_unchecked(&seed).map_err(|e| anyhow!("make a signing key: {e}"))?;
        Ok(SigningKey { seed: zeroize::Zeroizing::new(seed), pair })
    }

    pub fn public(&self) -> PublicKey {
        let mut key = [0u8; 32];
        key.copy_from_slice(self.pair.public_key().as_ref());
        PublicKey(key)
    }

    /// For the key file only.
    pub fn seed(&self) -> &[u8; 32] {
        &self.seed
    }

    /// The two lines of `value`, signed.
    pub fn sign_line(&self, value: &impl Serialize) -> Result<Vec<u8>> {
        let mut line = serde_json::to_vec(value).context("write JSON")?;
        let signature = [string(ALGORITHM), string(self.pair.sign(&to_be_signed(&line)).as_ref())].concat();
        let blob = [
            b"SSHSIG".to_vec(),
            1u32.to_be_bytes().to_vec(),
            string(&self.public().blob()),
            string(NAMESPACE),
            string(b""),
            string(b"sha512"),
            string(&signature),
        ]
        .concat();
        line.push(b'\n');
        line.extend_from_slice(BASE64_STANDARD.encode(blob).as_bytes());
        line.push(b'\n');
        Ok(line)
    }
}

/// A line whose signature fits the key it names. Whether that key may sign this is the caller's question.
pub struct SignedLine<'a> {
    pub line: &'a [u8],
    pub key: PublicKey,
}

impl<'a> SignedLine<'a> {
    pub fn parse(object: &'a [u8]) -> Result<SignedLine<'a>> {
        let mut lines = object.split(|b| *b == b'\n');
        let line = lines.next().context("no first line")?;
        let armour = lines.next().context("no signature line: cut short")?;
        ensure!(
            lines.next() == Some(b"") && lines.next().is_none(),
            "not two lines: cut short, or bytes after the signature"
        );
        let blob = BASE64_STANDARD.decode(armour).context("malformed signature line")?;
        let mut rest = blob.strip_prefix(b"SSHSIG\0\0\0\x01").context("not an SSH signature of version 1")?;
        let key = PublicKey::from_blob(take_string(&mut rest)?)?;
        ensure!(take_string(&mut rest)? == NAMESPACE, "signed for another purpose");
        ensure!(take_string(&mut rest)?.is_empty(), "reserved field in use");
        ensure!(take_string(&mut rest)? == b"sha512", "signed over another hash");
        let mut signature = take_string(&mut rest)?;
        ensure!(take_string(&mut signature)? == ALGORITHM, "not an Ed25519 signature");
        UnparsedPublicKey::new(&ED25519, key.0)
            .verify(&to_be_signed(line), take_string(&mut signature)?)
            .map_err(|_| anyhow!("the signature does not fit: altered or forged"))?;
        Ok(SignedLine { line, key })
    }

    /// The format of the line: to be looked at before the rest, which a newer version may have changed.
    pub fn format(&self) -> Result<u32> {
        #[derive(serde::Deserialize)]
        struct Version {
            format: u32,
        }
        Ok(self.decode::<Version>()?.format)
    }

    /// What the line is.
    pub fn r#type(&self) -> Result<String> {
        #[derive(serde::Deserialize)]
        struct Kind {
            r#type: String,
        }
        Ok(self.decode::<Kind>()?.r#type)
    }

    pub fn decode<T: DeserializeOwned>(&self) -> Result<T> {
        serde_json::from_slice(self.line).context("read a signed line")
    }
}

fn to_be_signed(message: &[u8]) -> Vec<u8> {
    [b"SSHSIG".to_vec(), string(NAMESPACE), string(b""), string(b"sha512"), string(&Sha512::digest(message))].concat()
}

/// SSH's `string`: a big-endian u32 of length, then the bytes.
fn string(bytes: &[u8]) -> Vec<u8> {
    let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
    [&length.to_be_bytes()[..], bytes].concat()
}

fn take_string<'a>(rest: &mut &'a [u8]) -> Result<&'a [u8]> {
    let (length, tail) = rest.split_first_chunk::<4>().context("malformed SSH structure")?;
    let length = u32::from_be_bytes(*length) as usize;
    ensure!(length <= tail.len(), "malformed SSH structure");
    let (value, tail) = tail.split_at(length);
    *rest = tail;
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    #[test]
    fn stock_ssh_keygen_verifies_our_signature() {
        let key = SigningKey::generate().unwrap();
        let object = key.sign_line(&serde_json::json!({"type": "test", "n": 1})).unwrap();
        let text = String::from_utf8(object).unwrap();
        let (line, armour) = text.trim_end().split_once('\n').unwrap();
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str, content: String| {
            let path = dir.path().join(name);
            crate::durable::publish_new(&path, content.as_bytes(), 0o600).unwrap();
            path
        };
        let allowed = file("allowed", format!("host {}\n", key.public()));
        let sig = file("sig", format!("-----BEGIN SSH SIGNATURE-----\n{armour}\n-----END SSH SIGNATURE-----\n"));
        let mut child = Command::new("ssh-keygen")
            .args(["-Y", "verify", "-I", "host", "-n", "blackstart", "-f"])
            .arg(allowed)
            .arg("-s")
            .arg(sig)
            .stdin(Stdio::piped())
            .spawn()
            .expect("ssh-keygen is part of the test tools: run scripts/test-servers");
        std::io::Write::write_all(&mut child.stdin.take().unwrap(), line.as_bytes()).unwrap();
        assert!(child.wait().unwrap().success());
    }

    #[test]
    fn any_change_is_noticed() {
        let key = SigningKey::generate().unwrap();
        let object = key.sign_line(&serde_json::json!({"type": "test"})).unwrap();
        let parsed = SignedLine::parse(&object).unwrap();
        assert_eq!(parsed.key, key.public());
        for at in 0..object.len() {
            let mut bytes = object.clone();
            bytes[at] ^= 1;
            let same_key = SignedLine::parse(&bytes).is_ok_and(|s| s.key == key.public() && s.line == parsed.line);
            assert!(!same_key, "byte {at}");
        }
        for keep in 0..object.len() {
            assert!(SignedLine::parse(&object[..keep]).is_err(), "cut to {keep}");
        }
    }

    #[test]
    fn public_keys_round_trip() {
        let key = SigningKey::generate().unwrap().public();
        assert_eq!(key.to_string().parse::<PublicKey>().unwrap(), key);
    }
}
