//! The server's `backup_manifest`: a SHA-256 that the server itself took of each file while it read it, compared with what arrived.
//! (PostgreSQL manual, "Backup Manifest Format".)

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Seek, SeekFrom, Write};

use super::feed::Feed;
use super::members::Members;

/// The hash and size of a file as it arrived.
pub type Arrived = HashMap<Vec<u8>, ([u8; 32], u64)>;

/// A file while it arrives.
pub struct Arriving {
    path: Vec<u8>,
    hash: Sha256,
    size: u64,
}

impl Arriving {
    pub fn new(path: Vec<u8>) -> Arriving {
        Arriving { path, hash: Sha256::new(), size: 0 }
    }

    pub fn note(&mut self, bytes: &[u8]) {
        self.hash.update(bytes);
        self.size += bytes.len() as u64;
    }

    /// Takes just as many bytes of it as are asked for.
    pub fn filling<'a>(
        &'a mut self,
        members: &'a mut Members,
        feed: &'a mut Feed,
    ) -> impl FnMut(&mut [u8]) -> Result<()> + 'a {
        move |buffer| {
            let n = members.read(feed, buffer)?;
            ensure!(n == buffer.len(), "the file is cut short");
            self.note(buffer);
            Ok(())
        }
    }

    pub fn end(self, arrived: &mut Arrived) {
        arrived.insert(self.path, (self.hash.finalize().into(), self.size));
    }
}

/// What a snapshot has in place of a file that arrived.
pub struct Instead {
    pub path: Vec<u8>,
    pub size: u64,
    /// Unknown where a part of it was not read.
    pub hash: Option<[u8; 32]>,
}

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
    last_modified: Option<String>,
}

impl FileLine {
    fn path(&self) -> Result<Vec<u8>> {
        match (&self.path, &self.encoded_path) {
            (Some(path), _) => Ok(path.clone().into_bytes()),
            (None, Some(hex)) => unhex(hex).context("read an encoded path of the manifest"),
            (None, None) => bail!("the manifest lists a file without a path"),
        }
    }
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
            if is_file(text) {
                let listed = serde_json::from_slice(text).context("read a line of the manifest")?;
                files += usize::from(compare(&listed, arrived)?);
            } else if text.starts_with(b"{ \"Timeline\"") {
                ranges.push(serde_json::from_slice(text).context("read a line of the manifest")?);
            }
            line.clear();
        }
        let own = own.context("the server's manifest is cut short")?;
        let expected = hex(&hash.finalize());
        ensure!(
            own.windows(expected.len()).any(|w| w == expected.as_bytes()),
            "the server's manifest arrived damaged: its own checksum does not fit"
        );
        let listed = arrived.keys().filter(|path| !path.starts_with(b"pg_wal/")).count();
        ensure!(files == listed, "the server's manifest lists {files} files, and {listed} arrived");
        Ok(ranges)
    }

    /// The manifest of what the snapshot has: with other lines in place of those of some files, without a checksum where none was taken.
    pub fn instead(&mut self, files: &HashMap<Vec<u8>, Instead>) -> Result<Manifest> {
        self.rewind()?;
        let (mut new, mut hash) = (Manifest::new()?, Sha256::new());
        let mut line = Vec::new();
        let mut lines = BufReader::new(&mut self.file);
        while lines.read_until(b'\n', &mut line).context("read the manifest")? > 0 {
            let text = line.trim_ascii();
            let (text, comma) = text.strip_suffix(b",").map_or((text, "\n"), |text| (text, ",\n"));
            if text.starts_with(b"\"Manifest-Checksum\"") {
                break;
            }
            if is_file(text) {
                let listed: FileLine = serde_json::from_slice(text).context("read a line of the manifest")?;
                if let Some(instead) = files.get(&listed.path()?) {
                    line = (line_of(instead, &listed)? + comma).into_bytes();
                }
            }
            hash.update(&line);
            new.push(&line)?;
            line.clear();
        }
        new.push(format!("\"Manifest-Checksum\": \"{}\"}}\n", hex(&hash.finalize())).as_bytes())?;
        Ok(new)
    }
}

/// Whether a line of a manifest is that of a file.
fn is_file(line: &[u8]) -> bool {
    line.starts_with(b"{ \"Path\"") || line.starts_with(b"{ \"Encoded-Path\"")
}

/// The line of what the snapshot has in place of a file, without the comma at its end.
fn line_of(instead: &Instead, listed: &FileLine) -> Result<String> {
    let path = std::str::from_utf8(&instead.path).context("a path that was rewritten")?;
    let mut line = format!("{{ \"Path\": \"{path}\", \"Size\": {}", instead.size);
    if let Some(time) = &listed.last_modified {
        line.push_str(&format!(", \"Last-Modified\": \"{time}\""));
    }
    if let Some(hash) = &instead.hash {
        line.push_str(&format!(", \"Checksum-Algorithm\": \"SHA256\", \"Checksum\": \"{}\"", hex(hash)));
    }
    Ok(line + " }")
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// Whether the file counts: WAL and what belongs to it does not, of which some versions list a part.
fn compare(listed: &FileLine, arrived: &Arrived) -> Result<bool> {
    let path = listed.path()?;
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
        hex(&Sha256::digest(text.as_bytes()))
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

    #[test]
    fn lines_are_replaced_and_the_sum_is_right_again() {
        let files: [(&str, &[u8]); 3] =
            [("backup_label", b"ab"), ("base/5/INCREMENTAL.1259", b"abc"), ("global/pg_control", b"xyz")];
        let label = Instead { path: b"backup_label".to_vec(), size: 1, hash: Some(Sha256::digest(b"a").into()) };
        let whole = Instead { path: b"base/5/1259".to_vec(), size: 8192, hash: None };
        let instead = [(files[0].0.as_bytes().to_vec(), label), (files[1].0.as_bytes().to_vec(), whole)].into();
        let mut new = manifest(&files, sum).instead(&instead).unwrap();
        new.rewind().unwrap();
        let mut text = String::new();
        std::io::Read::read_to_string(&mut new.file, &mut text).unwrap();
        let parsed: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(parsed["Files"][1]["Path"], "base/5/1259");
        assert_eq!(
            (&parsed["Files"][1]["Size"], &parsed["Files"][1]["Checksum"]),
            (&8192.into(), &serde_json::Value::Null)
        );
        assert_eq!(parsed["Files"][0]["Checksum"], sum("a"));
        assert_eq!(parsed["Files"][2]["Checksum"], sum("xyz"));
        let (before, _) = text.split_once("\"Manifest-Checksum\"").unwrap();
        assert_eq!(parsed["Manifest-Checksum"], sum(before));
        assert_eq!(new.size, text.len() as u64);
    }
}
