//! What `[source.command]` may say.

use anyhow::Result;
use jiff::SignedDuration;
use serde::{Deserialize, Deserializer, de};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::error::{Failure, Kind};
use crate::secret::Text;
use crate::time::optional_length;

/// A stream's file in the snapshot, where the configuration gives no name.
const FILE: &str = "dump";
const NAME_MAX: usize = 100;
const STREAMS_MAX: usize = 100;
/// Bytes at the front of a stream, and at its end, that can be looked at.
pub(super) const WINDOW: usize = 4096;
/// Nothing arrives for so long: the dump hangs.
const IDLE: SignedDuration = SignedDuration::from_hours(1);
const WHOLE: SignedDuration = SignedDuration::from_hours(24);

/// The table. Either `dump` and the keys that go with it stand in the table itself (one stream), or in `[[source.command.stream]]`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// The file's name in the snapshot.
    pub file: Option<String>,
    pub dump: Vec<String>,
    pub restore: Vec<String>,
    pub verify: Vec<String>,
    pub min_bytes: Option<u64>,
    pub max_shrink: Option<Percent>,
    pub magic: Option<Magic>,
    pub end_marker: Option<String>,
    pub stream: Vec<Stream>,
    /// Variables for all programs of this source, in plain text or by reference. Nobody else gets them.
    pub environment: BTreeMap<String, Text>,
    /// Variables of blackstart's own environment to pass on, beside [`crate::child::PASSED_ON`].
    pub pass: Vec<String>,
    /// Where the programs run; otherwise in the directory of the configuration.
    pub directory: Option<PathBuf>,
    /// What one stream may take.
    #[serde(deserialize_with = "optional_length")]
    pub timeout: Option<SignedDuration>,
    /// How long a dump may write nothing.
    #[serde(deserialize_with = "optional_length")]
    pub idle_timeout: Option<SignedDuration>,
}

/// One stream: the output of one program, one file of the snapshot. Program and arguments go as they are; there is no shell.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stream {
    /// The file's name in the snapshot.
    pub file: String,
    /// Writes the dump to its stdout.
    pub dump: Vec<String>,
    /// Takes the dump: from its stdin, or from the path that stands for `{file}`.
    #[serde(default)]
    pub restore: Vec<String>,
    /// Looks at a restored dump, likewise; exits with 0 if it is sound. `{scratch}` stands for an empty directory, which is removed afterwards.
    #[serde(default)]
    pub verify: Vec<String>,
    /// A shorter dump is none. 1 by default: an empty one.
    #[serde(default = "one")]
    pub min_bytes: u64,
    /// A dump that became smaller than the last by more than this is none. `100%`: never.
    #[serde(default)]
    pub max_shrink: Percent,
    /// What a dump begins with: text, or bytes as `0x6de29981`.
    #[serde(default)]
    pub magic: Option<Magic>,
    /// Text that occurs in the last 4 KiB of every whole dump.
    #[serde(default)]
    pub end_marker: Option<String>,
}

fn one() -> u64 {
    1
}

/// A share, written `50%`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Percent(pub f64);

impl Default for Percent {
    fn default() -> Percent {
        Percent(50.0)
    }
}

impl<'de> Deserialize<'de> for Percent {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Percent, D::Error> {
        let text = String::deserialize(d)?;
        let number = text.strip_suffix('%').and_then(|n| n.trim().parse().ok()).filter(|n| (0.0..=100.0).contains(n));
        number.map(Percent).ok_or_else(|| de::Error::custom(format!("{text:?} is not a share such as \"50%\"")))
    }
}

/// The first bytes of a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Magic(pub Vec<u8>);

impl<'de> Deserialize<'de> for Magic {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Magic, D::Error> {
        let text = String::deserialize(d)?;
        let bytes = match text.strip_prefix("0x") {
            None => Some(text.as_bytes().to_vec()),
            Some(hex) => hex
                .as_bytes()
                .chunks(2)
                .map(|two| u8::from_str_radix(std::str::from_utf8(two).ok().filter(|t| t.len() == 2)?, 16).ok())
                .collect(),
        };
        let fits = bytes.filter(|b| (1..=WINDOW).contains(&b.len()));
        fits.map(Magic)
            .ok_or_else(|| de::Error::custom(format!("{text:?} is neither text nor bytes such as \"0x1f8b\"")))
    }
}

impl Options {
    /// The streams in the order of their names. Fails with `Kind::Config` where the table contradicts itself.
    pub fn streams(&self) -> Result<Vec<Stream>> {
        let alone = !self.dump.is_empty();
        let others =
            self.file.is_some() || self.min_bytes.is_some() || self.max_shrink.is_some() || self.magic.is_some();
        let others = others || self.end_marker.is_some() || !self.restore.is_empty() || !self.verify.is_empty();
        let mut streams = self.stream.clone();
        match (alone, streams.is_empty()) {
            (false, true) => return Err(wrong("says no `dump`: the program to run, with its arguments, as a list")),
            (true, false) => {
                return Err(wrong("has a `dump` and streams: say `dump` in each [[source.command.stream]]"));
            }
            (false, false) if others => {
                return Err(wrong("has streams: what belongs to one stream stands in its [[source.command.stream]]"));
            }
            (false, false) => {}
            (true, true) => streams.push(Stream {
                file: self.file.clone().unwrap_or_else(|| FILE.into()),
                dump: self.dump.clone(),
                restore: self.restore.clone(),
                verify: self.verify.clone(),
                min_bytes: self.min_bytes.unwrap_or_else(one),
                max_shrink: self.max_shrink.unwrap_or_default(),
                magic: self.magic.clone(),
                end_marker: self.end_marker.clone(),
            }),
        }
        if streams.len() > STREAMS_MAX {
            return Err(wrong(&format!("has more than {STREAMS_MAX} streams")));
        }
        streams.sort_by(|a, b| a.file.cmp(&b.file));
        for (i, stream) in streams.iter().enumerate() {
            stream.validate()?;
            if i > 0 && streams[i - 1].file == stream.file {
                return Err(wrong(&format!("has two streams with the file {:?}", stream.file)));
            }
        }
        Ok(streams)
    }

    /// Everything that can be wrong without running anything.
    pub fn validate(&self) -> Result<()> {
        for name in self.environment.keys().chain(&self.pass) {
            if name.is_empty() || name.contains(['=', '\0']) {
                return Err(wrong(&format!("names no variable with {name:?}")));
            }
        }
        self.streams().map(drop)
    }

    pub fn timeout(&self) -> std::time::Duration {
        self.timeout.unwrap_or(WHOLE).unsigned_abs()
    }

    pub fn idle_timeout(&self) -> std::time::Duration {
        self.idle_timeout.unwrap_or(IDLE).unsigned_abs()
    }

    /// Where the programs run: in the directory of the configuration, or in `directory` relative to it.
    pub(super) fn directory(&self, base: &Path) -> Option<PathBuf> {
        let directory = self.directory.as_ref().map_or(base.to_owned(), |directory| base.join(directory));
        (!directory.as_os_str().is_empty()).then_some(directory)
    }
}

impl Stream {
    /// The stream of a program of ours: it begins with `magic` and has `end` near its end.
    pub fn of_program(file: &str, program: &str, magic: Option<&[u8]>, end: Option<&str>) -> Stream {
        Stream {
            file: file.into(),
            dump: vec![program.into()],
            restore: Vec::new(),
            verify: Vec::new(),
            min_bytes: 1,
            max_shrink: Percent(100.0),
            magic: magic.map(|bytes| Magic(bytes.to_vec())),
            end_marker: end.map(str::to_owned),
        }
    }

    fn validate(&self) -> Result<()> {
        let fine = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        let file = &self.file;
        if file.is_empty() || file.len() > NAME_MAX || file.starts_with('.') || !file.chars().all(fine) {
            let what =
                format!("has the file name {file:?}: up to {NAME_MAX} of a-z A-Z 0-9 . _ - without a dot in front");
            return Err(wrong(&what));
        }
        if self.dump.first().is_none_or(String::is_empty) {
            return Err(wrong(&format!("says no `dump` for {file}")));
        }
        if [&self.restore, &self.verify].iter().any(|argv| argv.first().is_some_and(String::is_empty)) {
            return Err(wrong(&format!("names an empty program for {file}")));
        }
        let marker = self.end_marker.as_ref().map_or(1, String::len);
        if !(1..=WINDOW).contains(&marker) {
            return Err(wrong(&format!("has an `end_marker` for {file} that is empty or longer than {WINDOW} bytes")));
        }
        Ok(())
    }
}

fn wrong(what: &str) -> anyhow::Error {
    Failure::new(
        Kind::Config,
        format!("[source.command] {what}"),
        "Nothing was done. Correct the source; `blackstart check` reads it again.",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn streams(text: &str) -> Result<Vec<Stream>> {
        toml::from_str::<Options>(text)?.streams()
    }

    #[test]
    fn one_stream_or_several() {
        let one =
            streams("dump = [\"mongodump\", \"--archive\"]\nmagic = \"0x6de29981\"\nmax_shrink = \"20%\"\n").unwrap();
        assert_eq!((one[0].file.as_str(), one[0].min_bytes, one[0].max_shrink), ("dump", 1, Percent(20.0)));
        assert_eq!(one[0].magic, Some(Magic(vec![0x6d, 0xe2, 0x99, 0x81])));
        let two = streams(
            "[[stream]]\nfile = \"b\"\ndump = [\"x\"]\n[[stream]]\nfile = \"a\"\ndump = [\"y\"]\nmagic = \"PGDMP\"\n",
        );
        let two = two.unwrap();
        assert_eq!((two[0].file.as_str(), two[1].file.as_str(), two[1].max_shrink), ("a", "b", Percent(50.0)));
    }

    #[test]
    fn contradictions_are_refused() {
        for (text, said) in [
            ("", "no `dump`"),
            ("dump = []", "no `dump`"),
            ("dump = [\"\"]", "no `dump`"),
            ("dump = [\"x\"]\n[[stream]]\nfile = \"a\"\ndump = [\"x\"]\n", "and streams"),
            ("verify = [\"x\"]\n[[stream]]\nfile = \"a\"\ndump = [\"x\"]\n", "belongs to one stream"),
            ("[[stream]]\nfile = \"a\"\ndump = [\"x\"]\n[[stream]]\nfile = \"a\"\ndump = [\"x\"]\n", "two streams"),
            ("dump = [\"x\"]\nfile = \"../a\"\n", "file name"),
            ("dump = [\"x\"]\nfile = \".a\"\n", "file name"),
            ("dump = [\"x\"]\nend_marker = \"\"\n", "end_marker"),
            ("dump = [\"x\"]\nmax_shrink = \"half\"\n", "50%"),
            ("dump = [\"x\"]\nmagic = \"0x1f8\"\n", "0x1f8b"),
            ("dump = \"mongodump --archive\"\n", "sequence"),
            ("dump = [\"x\"]\ntimeout = \"0s\"\n", "length of time"),
        ] {
            let error = format!("{:#}", streams(text).unwrap_err());
            assert!(error.contains(said), "{text}: {error}");
        }
        let equals: Options = toml::from_str("dump = [\"x\"]\npass = [\"A=b\"]\n").unwrap();
        assert!(equals.validate().is_err());
    }
}
