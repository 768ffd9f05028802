//! The server's `backup_manifest`: a SHA-256 that the server itself took of each file while it read it, compared with what arrived.
//! (PostgreSQL manual, "Backup Manifest Format".)

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Seek, SeekFrom, Write};

/// The hash and size of a file as it arrived.
pub type Arrived = HashMap<Vec<u8>, ([u8; 32], u64)>;

/// Bytes of a manifest that are taken: some 200 for each file.
const MANIFEST_MAX: u64 = 4 << 30;

/// A manifest while it comes: kept in a temporary file, since it grows with the number of files.
pub struct Manifest {
    file: File,
    pub size: u64,
}

/// A range of WAL that the backup needs.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct WalRange {
    #[serde(rename = "End-LSN")]
    pub end: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct FileLine {
    path: Option<String>,
    #[serde(rename = "Encoded-Path")]
    encoded_path: Option<String>,
    size: u64,
    #[serde(rename = "Checksum-Algorithm")]
    algorithm: String,
    checksum: String,
}

impl Manifest {
    pub fn new() -> Result<Manifest> {
        Ok(Manifest { file: tempfile::tempfile().context("make a temporary file for the manifest")?, size: 0 })
    }

    pub fn push(&mut self, bytes: &[u8]) -> Result<()> {
        self.size += bytes.len() as u64;
        ensure!(self.size <= MANIFEST_MAX, "the server's manifest is longer than {MANIFEST_MAX} bytes");
        self.file.write_all(bytes).context("keep the manifest")
    }

    /// Bytes of the manifest from the position that [`Manifest::rewind`] set.
    pub fn read(&mut self, buffer: &mut [u8]) -> Result<usize> {
        std::io::Read::read(&mut self.file, buffer).context("read the manifest again")
    }

    pub fn rewind(&mut self) -> Result<()> {
        self.file.seek(SeekFrom::Start(0)).context("read the manifest again").map(drop)
    }

    /// Compares every file of the manifest with what arrived, and the manifest with its own checksum. Gives the WAL that the backup needs.
    /// The server writes one file on each line.
    pub fn check(&mut self, arrived: &Arrived) -> Result<Vec<WalRange>> {
        self.rewind()?;
        let mut hash = Sha256::new();
        let mut ranges = Vec::new();
        let (mut files, mut own) = (0usize, None);
        let mut line = Vec::new();
        let mut lines = BufReader::new(&mut self.file);
        while lines.read_until(b'\n', &mut line).context("read the manifest")? > 0 {
            let text = line.trim_ascii().trim_ascii_end();
            let text = text.strip_suffix(b",").unwrap_or(text);
            if text.starts_with(b"\"Manifest-Checksum\"") {
                own = Some(text.to_vec());
                break;
            }
            hash.update(&line);
            if text.starts_with(b"{ \"Path\"") || text.starts_with(b"{ \"Encoded-Path\"") {
                let listed = serde_json::from_slice(text).context("read a line of the manifest")?;
                files += usize::from(compare(&listed, arrived)?);
            } else if text.starts_with(b"{ \"Timeline\"") {
                ranges.push(serde_json::from_slice(text).context("read a line of the manifest")?);
            }
            line.clear();
        }
        let own = own.context("the server's manifest is cut short")?;
        let expected = hash.finalize();
        let expected: String = expected.iter().map(|b| format!("{b:02x}")).collect();
        ensure!(
            own.windows(expected.len()).any(|w| w == expected.as_bytes()),
            "the server's manifest arrived damaged: its own checksum does not fit"
        );
        let listed = arrived.keys().filter(|path| !path.starts_with(b"pg_wal/")).count();
        ensure!(files == listed, "the server's manifest lists {files} files, and {listed} arrived");
        Ok(ranges)
    }
}

/// Whether the file counts: WAL and what belongs to it does not, of which some versions list a part.
fn compare(listed: &FileLine, arrived: &Arrived) -> Result<bool> {
    let path = match (&listed.path, &listed.encoded_path) {
        (Some(path), _) => path.clone().into_bytes(),
        (None, Some(hex)) => unhex(hex).context("read an encoded path of the manifest")?,
        (None, None) => bail!("the manifest lists a file without a path"),
    };
    if path.starts_with(b"pg_wal/") {
        return Ok(false);
    }
    let shown = String::from_utf8_lossy(&path).into_owned();
    let (hash, size) =
        arrived.get(&path).with_context(|| format!("{shown} is in the server's manifest and did not arrive"))?;
    ensure!(*size == listed.size, "{shown} arrived with {size} bytes, and the server sent {}", listed.size);
    ensure!(listed.algorithm == "SHA256", "the manifest has checksums of another kind: {}", listed.algorithm);
    ensure!(
        unhex(&listed.checksum).is_some_and(|sum| sum == hash),
        "{shown} arrived damaged: its SHA-256 is not the one that the server took"
    );
    Ok(true)
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digits = text.as_bytes().chunks(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok());
    digits.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A manifest as a server of version 17 writes it, of these files.
    fn manifest(files: &[(&str, &[u8])], sum_of: impl Fn(&str) -> String) -> Manifest {
        let hex = |bytes: &[u8]| -> String { bytes.iter().map(|b| format!("{b:02x}")).collect() };
        let lines: Vec<String> = files
            .iter()
            .map(|(path, bytes)| {
                let sum = hex(&Sha256::digest(bytes));
                format!(
                    "{{ \"Path\": \"{path}\", \"Size\": {}, \"Last-Modified\": \"2026-11-23 01:02:03 GMT\", \"Checksum-Algorithm\": \"SHA256\", \"Checksum\": \"{sum}\" }}",
                    bytes.len()
                )
            })
            .collect();
        let text = format!(
            "{{ \"PostgreSQL-Backup-Manifest-Version\": 2,\n\"System-Identifier\": 7,\n\"Files\": [\n{}\n],\n\"WAL-Ranges\": [\n\
             {{ \"Timeline\": 1, \"Start-LSN\": \"0/2000028\", \"End-LSN\": \"0/2000120\" }}\n],\n",
            lines.join(",\n")
        );
        let own = sum_of(&text);
        let mut manifest = Manifest::new().unwrap();
        manifest.push(format!("{text}\"Manifest-Checksum\": \"{own}\"}}\n").as_bytes()).unwrap();
        manifest
    }

    fn sum(text: &str) -> String {
        Sha256::digest(text.as_bytes()).iter().map(|b| format!("{b:02x}")).collect()
    }

    fn arrived(files: &[(&str, &[u8])]) -> Arrived {
        let one = |(path, bytes): &(&str, &[u8])| {
            (path.as_bytes().to_vec(), (Sha256::digest(bytes).into(), bytes.len() as u64))
        };
        files.iter().map(one).collect()
    }

    #[test]
    fn what_arrived_must_be_what_the_server_read() {
        let files: [(&str, &[u8]); 2] = [("base/5/1259", b"abc"), ("global/pg_control", b"xyz")];
        let with_wal: Vec<_> =
            files.iter().copied().chain([("pg_wal/000000010000000000000002", b"w".as_slice())]).collect();
        let ranges = manifest(&files, sum).check(&arrived(&with_wal)).unwrap();
        assert_eq!(ranges, [WalRange { end: "0/2000120".into() }]);
        let refused = |got: &[(&str, &[u8])], words: &str| {
            let error = manifest(&files, sum).check(&arrived(got)).unwrap_err();
            assert!(format!("{error:#}").contains(words), "{error:#}");
        };
        refused(&[("base/5/1259", b"abd"), files[1]], "base/5/1259 arrived damaged");
        refused(&[("base/5/1259", b"ab"), files[1]], "arrived with 2 bytes");
        refused(&files[1..], "did not arrive");
        refused(&[files[0], files[1], ("more", b"")], "3 arrived");
        let error = manifest(&files, |_| "0".repeat(64)).check(&arrived(&files)).unwrap_err();
        assert!(format!("{error:#}").contains("its own checksum"), "{error:#}");
    }
}
