//! What configuration files have in common: errors that name the line and the nearest known key.

use std::path::Path;

use crate::error::{Failure, Kind};

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
