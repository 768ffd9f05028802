//! What configuration files have in common: where they lie, how large they may be, and errors that name the line and the nearest known key.

use anyhow::{Context, Result};
use std::path::{Path, PathBuf};

use crate::error::{Failure, Kind};
use crate::limits::{CONFIG_FILE_MAX, CONFIG_FILES_MAX};

/// Every `*.toml` in `directory`, sorted; none where there is no such directory. `what` they are, for people.
pub(crate) fn files(directory: &Path, what: &str) -> Result<Vec<PathBuf>> {
    let entries = match std::fs::read_dir(directory) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.with_context(|| format!("read {}", directory.display()))?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.with_context(|| format!("read {}", directory.display()))?.path();
        let hidden = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        if path.extension().is_some_and(|e| e == "toml") && !hidden {
            found.push(path);
        }
    }
    if found.len() > CONFIG_FILES_MAX {
        let help = format!("Nothing was done. At most {CONFIG_FILES_MAX} are read; is this the right directory?");
        let message = format!("{} holds {} {what} files", directory.display(), found.len());
        return Err(Failure::new(Kind::Config, message, help));
    }
    found.sort();
    Ok(found)
}

/// The text of one; `must` says what it has to be.
pub(crate) fn read(path: &Path, must: &str) -> Result<String> {
    let unreadable = |what: String| {
        Failure::new(Kind::Config, format!("read {}: {what}", path.display()), format!("Nothing was done. {must}"))
    };
    let length = std::fs::metadata(path).map_err(|e| unreadable(e.to_string()))?.len();
    if length > CONFIG_FILE_MAX {
        return Err(unreadable(format!("it has {length} bytes")));
    }
    std::fs::read_to_string(path).map_err(|e| unreadable(e.to_string()))
}

/// An error in `text`, with its line and the key that may have been meant.
pub(crate) fn explain(error: &toml::de::Error, text: &str, path: &Path) -> anyhow::Error {
    let line = error
        .span()
        .map_or(1, |span| 1 + text.as_bytes()[..span.start.min(text.len())].iter().filter(|b| **b == b'\n').count());
    let message = error.message();
    let mut help = "Nothing was done. Correct the file; `blackstart check` reads it again.".to_owned();
    let quoted: Vec<&str> = message.split('`').skip(1).step_by(2).collect();
    if message.starts_with("unknown")
        && let Some((wrong, known)) = quoted.split_first()
        && let Some(nearest) = known.iter().min_by_key(|k| distance(wrong, k))
    {
        help = format!("Did you mean `{nearest}`? {help}");
    }
    Failure::new(Kind::Config, format!("{}, line {line}: {}", path.display(), message.trim_end()), help)
}

/// Edits (Levenshtein) between two words.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = i;
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::io::Write;

    #[test]
    fn files_are_found_by_name_and_bounded_in_number_and_size() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        assert!(files(&at("none"), "plan").unwrap().is_empty(), "a directory that is not there has none");
        for name in ["b.toml", "a.toml", ".hidden.toml", "notes.txt"] {
            fs::File::create(at(name)).unwrap().write_all(b"x = 1").unwrap();
        }
        assert_eq!(files(dir.path(), "plan").unwrap(), [at("a.toml"), at("b.toml")]);
        assert_eq!(read(&at("a.toml"), "").unwrap(), "x = 1");
        fs::File::create(at("a.toml")).unwrap().set_len(CONFIG_FILE_MAX + 1).unwrap();
        let refused = read(&at("a.toml"), "A plan is small.").expect_err("a file beyond the bound is not read");
        assert!(refused.to_string().contains("it has 1048577 bytes"), "{refused}");
        (0..CONFIG_FILES_MAX).for_each(|n| drop(fs::File::create(at(&format!("{n}.toml"))).unwrap()));
        let refused = files(dir.path(), "plan").expect_err("so many are a wrong directory");
        assert!(refused.to_string().contains("holds 1002 plan files"), "{refused}");
    }
}
