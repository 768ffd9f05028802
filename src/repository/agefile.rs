//! Age v1 files, written and read with the `age` crate's recipients and aws-lc's ChaCha20-Poly1305 (C2SP `age.md`).
//!
//! A sealed file grows in one buffer: plaintext is appended and sealed in place, 64 KiB at a time, while it is still in the cache,
//! and the SHA-256 of the stored bytes (the object's name) is taken on the way.

use age::secrecy::ExposeSecret;
use age_core::format::{FileKey, Stanza};
use anyhow::{Context, Result, anyhow, bail, ensure};
use aws_lc_rs::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::{hkdf, hmac};
use base64::prelude::{BASE64_STANDARD_NO_PAD, Engine};
use sha2::{Digest, Sha256};
use zeroize::Zeroize;

use crate::error::{Failure, Kind};

/// Plaintext bytes sealed together.
const CHUNK: usize = 64 << 10;
const TAG: usize = 16;
const MAGIC: &str = "age-encryption.org/v1\n";

pub type Recipient = age::x25519::Recipient;
pub type Identity = age::x25519::Identity;

/// An age file under construction.
pub struct Sealer {
    out: Vec<u8>,
    /// Where the plaintext that is not yet sealed begins in `out`.
    open_from: usize,
    /// Plaintext bytes appended so far.
    plain: u64,
    counter: u64,
    key: LessSafeKey,
    hash: Sha256,
}

/// A finished age file.
pub struct Sealed {
    pub bytes: Vec<u8>,
    pub sha256: [u8; 32],
    pub plain: u64,
}

impl Sealer {
    /// Begins a file to `recipients`, in the (emptied) `buffer`.
    pub fn new(recipients: &[Recipient], mut buffer: Vec<u8>) -> Result<Sealer> {
        ensure!(!recipients.is_empty(), "seal an object to no recipient");
        buffer.clear();
        let file_key = FileKey::try_init_with_mut(|key| aws_lc_rs::rand::fill(key))
            .map_err(|_| anyhow!("draw random bytes for a file key"))?;
        buffer.extend_from_slice(&header(recipients, &file_key)?);
        let mut nonce = [0u8; 16];
        aws_lc_rs::rand::fill(&mut nonce).map_err(|_| anyhow!("draw random bytes for a nonce"))?;
        buffer.extend_from_slice(&nonce);
        let key = payload_key(&file_key, &nonce)?;
        let hash = Sha256::new_with_prefix(&buffer);
        Ok(Sealer { open_from: buffer.len(), out: buffer, plain: 0, counter: 0, key, hash })
    }

    pub fn push(&mut self, mut data: &[u8]) -> Result<()> {
        self.plain += data.len() as u64;
        while !data.is_empty() {
            let open = self.out.len() - self.open_from;
            if open == CHUNK {
                self.seal_chunk(false)?;
                continue;
            }
            let (now, later) = data.split_at(data.len().min(CHUNK - open));
            self.out.extend_from_slice(now);
            data = later;
        }
        Ok(())
    }

    /// Bytes stored so far.
    pub fn stored(&self) -> usize {
        self.out.len()
    }

    pub fn plain(&self) -> u64 {
        self.plain
    }

    pub fn finish(mut self) -> Result<Sealed> {
        self.seal_chunk(true)?;
        Ok(Sealed { bytes: self.out, sha256: self.hash.finalize().into(), plain: self.plain })
    }

    fn seal_chunk(&mut self, last: bool) -> Result<()> {
        let tag = self
            .key
            .seal_in_place_separate_tag(nonce(self.counter, last), Aad::empty(), &mut self.out[self.open_from..])
            .map_err(|_| anyhow!("encrypt"))?;
        self.out.extend_from_slice(tag.as_ref());
        self.hash.update(&self.out[self.open_from..]);
        self.open_from = self.out.len();
        self.counter += 1;
        Ok(())
    }
}

/// Seals `plain` in one call.
pub fn seal(recipients: &[Recipient], plain: &[u8]) -> Result<Sealed> {
    let mut sealer = Sealer::new(recipients, Vec::with_capacity(plain.len() + plain.len() / 1024 + 1024))?;
    sealer.push(plain)?;
    sealer.finish()
}

/// The key of one stored file: opens all of it or a range of its 64 KiB chunks.
pub struct Opener {
    key: LessSafeKey,
    payload_from: usize,
}

impl Opener {
    /// `head` must hold at least the header, which is below 64 KiB.
    pub fn new(head: &[u8], identities: &[Identity]) -> Result<Opener> {
        let header = Header::parse(head).context("read an age header")?;
        let file_key = identities.iter().find_map(|identity| {
            let identity: &dyn age::Identity = identity;
            header.stanzas.iter().find_map(|stanza| identity.unwrap_stanza(stanza))
        });
        let file_key = match file_key {
            Some(Ok(key)) => key,
            Some(Err(e)) => bail!("open an age header: {e}"),
            None => {
                return Err(Failure::new(
                    Kind::WrongKey,
                    "this key cannot decrypt the object",
                    "The data is untouched. Give the recovery key of this repository (--identity FILE); `kit` names its public part.",
                ));
            }
        };
        header.check(&file_key)?;
        let nonce = head.get(header.len..header.len + 16).context("read an age header: cut short")?;
        Ok(Opener { key: payload_key(&file_key, nonce)?, payload_from: header.len + 16 })
    }

    /// Where the payload begins in the stored bytes.
    pub fn payload_from(&self) -> usize {
        self.payload_from
    }

    /// Opens the whole payload in place; the plaintext is then the returned slice of `stored`.
    pub fn open_all<'a>(&self, stored: &'a mut [u8]) -> Result<&'a [u8]> {
        let payload = stored.get_mut(self.payload_from..).context("open an age file: cut short")?;
        let n = self.open_chunks(payload, 0, true)?;
        Ok(&payload[..n])
    }

    /// Opens `payload`, which begins with chunk `first`; `ends` says whether it ends with the file's last chunk.
    /// Moves the plaintext to the front and returns its length.
    pub fn open_chunks(&self, payload: &mut [u8], first: u64, ends: bool) -> Result<usize> {
        ensure!(payload.len() >= TAG, "open an age file: cut short");
        let (mut from, mut to, mut counter) = (0, 0, first);
        while from < payload.len() {
            let until = (from + CHUNK + TAG).min(payload.len());
            let last = ends && until == payload.len();
            let plain = self
                .key
                .open_within(nonce(counter, last), Aad::empty(), &mut payload[from..until], 0..)
                .map_err(|_| anyhow!("decrypt: the stored bytes are not what was written"))?
                .len();
            payload.copy_within(from..from + plain, to);
            to += plain;
            from = until;
            counter += 1;
        }
        Ok(to)
    }
}

/// The stored range that holds the plaintext range `from..to`: (first chunk, start, end) relative to the payload.
pub fn stored_range(from: u64, to: u64) -> (u64, u64, u64) {
    let (chunk, stored) = (CHUNK as u64, (CHUNK + TAG) as u64);
    let first = from / chunk;
    (first, first * stored, to.div_ceil(chunk) * stored)
}

/// Plaintext offset at which chunk `first` begins.
pub fn chunk_start(first: u64) -> u64 {
    first * CHUNK as u64
}

/// Decrypts a whole stored file.
pub fn open(stored: &mut [u8], identities: &[Identity]) -> Result<Vec<u8>> {
    Ok(Opener::new(stored, identities)?.open_all(stored)?.to_vec())
}

fn header(recipients: &[Recipient], file_key: &FileKey) -> Result<Vec<u8>> {
    let mut out = MAGIC.to_string();
    for recipient in recipients {
        let recipient: &dyn age::Recipient = recipient;
        let (stanzas, _) = recipient.wrap_file_key(file_key).map_err(|e| anyhow!("wrap a file key: {e}"))?;
        for stanza in stanzas {
            out.push_str("-> ");
            out.push_str(&stanza.tag);
            for arg in &stanza.args {
                out.push(' ');
                out.push_str(arg);
            }
            out.push('\n');
            // Lines of 64, and always a shorter one to end with.
            let body = BASE64_STANDARD_NO_PAD.encode(&stanza.body);
            let mut rest = body.as_str();
            while rest.len() >= 64 {
                out.push_str(&rest[..64]);
                out.push('\n');
                rest = &rest[64..];
            }
            out.push_str(rest);
            out.push('\n');
        }
    }
    out.push_str("---");
    let mac = hmac::sign(&mac_key(file_key)?, out.as_bytes());
    out.push(' ');
    out.push_str(&BASE64_STANDARD_NO_PAD.encode(mac.as_ref()));
    out.push('\n');
    Ok(out.into_bytes())
}

struct Header<'a> {
    stanzas: Vec<Stanza>,
    /// The header up to and with `---`.
    authenticated: &'a [u8],
    mac: Vec<u8>,
    /// Bytes of the whole header.
    len: usize,
}

impl<'a> Header<'a> {
    fn parse(bytes: &'a [u8]) -> Result<Header<'a>> {
        let mut rest = bytes.strip_prefix(MAGIC.as_bytes()).context("not an age v1 file")?;
        let mut stanzas: Vec<Stanza> = Vec::new();
        loop {
            let end = rest.iter().take(1 << 16).position(|b| *b == b'\n').context("header cut short")?;
            let line = std::str::from_utf8(&rest[..end]).context("header is not text")?;
            let start = bytes.len() - rest.len();
            rest = &rest[end + 1..];
            if let Some(mac) = line.strip_prefix("--- ") {
                let mac = BASE64_STANDARD_NO_PAD.decode(mac).context("malformed header MAC")?;
                return Ok(Header { stanzas, authenticated: &bytes[..start + 3], mac, len: start + end + 1 });
            } else if let Some(args) = line.strip_prefix("-> ") {
                let mut words = args.split(' ').map(str::to_owned);
                let tag = words.next().context("stanza without a type")?;
                stanzas.push(Stanza { tag, args: words.collect(), body: Vec::new() });
            } else {
                let part = BASE64_STANDARD_NO_PAD.decode(line).context("malformed stanza")?;
                stanzas.last_mut().context("stanza body without a stanza")?.body.extend(part);
            }
        }
    }

    fn check(&self, file_key: &FileKey) -> Result<()> {
        hmac::verify(&mac_key(file_key)?, self.authenticated, &self.mac)
            .map_err(|_| anyhow!("the age header was altered: its MAC does not match"))
    }
}

fn derive(file_key: &FileKey, salt: &[u8], info: &[u8]) -> Result<[u8; 32]> {
    let mut out = [0u8; 32];
    hkdf::Salt::new(hkdf::HKDF_SHA256, salt)
        .extract(file_key.expose_secret())
        .expand(&[info], hkdf::HKDF_SHA256)
        .and_then(|okm| okm.fill(&mut out))
        .map_err(|_| anyhow!("derive a key"))?;
    Ok(out)
}

fn mac_key(file_key: &FileKey) -> Result<hmac::Key> {
    let mut key = derive(file_key, &[], b"header")?;
    let mac = hmac::Key::new(hmac::HMAC_SHA256, &key);
    key.zeroize();
    Ok(mac)
}

fn payload_key(file_key: &FileKey, nonce: &[u8]) -> Result<LessSafeKey> {
    let mut key = derive(file_key, nonce, b"payload")?;
    let unbound = UnboundKey::new(&CHACHA20_POLY1305, &key).map_err(|_| anyhow!("make a cipher key"))?;
    key.zeroize();
    Ok(LessSafeKey::new(unbound))
}

/// 11 bytes of big-endian counter, then 1 for the last chunk.
fn nonce(counter: u64, last: bool) -> Nonce {
    let mut bytes = [0u8; 12];
    bytes[3..11].copy_from_slice(&counter.to_be_bytes());
    bytes[11] = u8::from(last);
    Nonce::assume_unique_for_key(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};

    const SIZES: [usize; 8] = [0, 1, 65535, 65536, 65537, 131_072, 131_073, 1 << 20];

    fn data(n: usize) -> Vec<u8> {
        (0..n).map(|i| (i * 31 + i / 251) as u8).collect()
    }

    #[test]
    fn the_age_crate_reads_what_we_write_and_we_what_it_writes() {
        let identity = Identity::generate();
        for n in SIZES {
            let sealed = seal(&[identity.to_public(), Identity::generate().to_public()], &data(n)).unwrap();
            assert_eq!(sealed.sha256, <[u8; 32]>::from(Sha256::digest(&sealed.bytes)));
            let mut theirs = Vec::new();
            let decryptor = age::Decryptor::new(&sealed.bytes[..]).unwrap();
            decryptor.decrypt([&identity as &dyn age::Identity].into_iter()).unwrap().read_to_end(&mut theirs).unwrap();
            assert!(theirs == data(n), "{n} bytes");

            let recipient = identity.to_public();
            let encryptor = age::Encryptor::with_recipients([&recipient as &dyn age::Recipient].into_iter()).unwrap();
            let mut stored = Vec::new();
            let mut writer = encryptor.wrap_output(&mut stored).unwrap();
            writer.write_all(&data(n)).unwrap();
            writer.finish().unwrap();
            assert!(open(&mut stored, std::slice::from_ref(&identity)).unwrap() == data(n), "{n} bytes");
        }
    }

    #[test]
    fn ranges_open_alone() {
        let identity = Identity::generate();
        let plain = data(300_000);
        let sealed = seal(&[identity.to_public()], &plain).unwrap();
        let opener = Opener::new(&sealed.bytes, &[identity]).unwrap();
        for (from, to) in [(0u64, 1u64), (65_535, 65_537), (100_000, 299_999), (262_144, 300_000)] {
            let (first, start, end) = stored_range(from, to);
            let payload = &sealed.bytes[opener.payload_from()..];
            let end = (end as usize).min(payload.len());
            let mut part = payload[start as usize..end].to_vec();
            let n = opener.open_chunks(&mut part, first, end == payload.len()).unwrap();
            let skip = (from - chunk_start(first)) as usize;
            assert!(part[skip..n][..(to - from) as usize] == plain[from as usize..to as usize]);
        }
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_noticed() {
        let identity = Identity::generate();
        let sealed = seal(&[identity.to_public()], &data(70_000)).unwrap().bytes;
        let ids = [identity];
        for at in (0..400).chain([65_700, sealed.len() - 1]) {
            let mut bytes = sealed.clone();
            bytes[at] ^= 1;
            assert!(open(&mut bytes, &ids).is_err(), "byte {at}");
        }
        for keep in [0, 10, 150, 250, 65_800, sealed.len() - 1] {
            assert!(open(&mut sealed[..keep].to_vec(), &ids).is_err(), "cut to {keep}");
        }
    }

    #[test]
    fn another_key_is_a_wrong_key() {
        let mut sealed = seal(&[Identity::generate().to_public()], b"x").unwrap().bytes;
        let error = open(&mut sealed, &[Identity::generate()]).unwrap_err();
        assert_eq!(crate::error::kind_of(&error), Kind::WrongKey);
    }
}
