//! `${name}` in a plan: its own variables, `${copy.SOURCE}` (where the restored copy of a source lies: in scratch in a drill) and `${scratch}`.

use anyhow::{Result, bail};
use std::collections::BTreeMap;
use std::path::Path;

#[derive(Debug, Clone, Default)]
pub struct Variables(BTreeMap<String, String>);

impl Variables {
    pub fn new(own: &BTreeMap<String, String>) -> Variables {
        Variables(own.clone())
    }

    pub fn set(&mut self, name: impl Into<String>, path: &Path) {
        self.0.insert(name.into(), path.display().to_string());
    }

    /// `text` with every `${name}` replaced, once: what is put in is not looked at again.
    pub fn fill(&self, text: &str) -> Result<String> {
        let mut out = String::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once("${") {
            let Some((name, tail)) = after.split_once('}') else { bail!("`${{` without `}}` in {text:?}") };
            let Some(value) = self.0.get(name) else {
                let known: Vec<&str> = self.0.keys().map(String::as_str).collect();
                bail!("${{{name}}} is not known here; known are: {}", known.join(", "));
            };
            out.push_str(before);
            out.push_str(value);
            rest = tail;
        }
        out.push_str(rest);
        Ok(out)
    }

    pub fn fill_all(&self, words: &[String]) -> Result<Vec<String>> {
        words.iter().map(|word| self.fill(word)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filled_once_and_never_guessed() {
        let own = [("a".to_owned(), "1".to_owned()), ("b".to_owned(), "${a}".to_owned())].into();
        let mut variables = Variables::new(&own);
        variables.set("copy.db", Path::new("/s/db"));
        assert_eq!(variables.fill("x${a}y${copy.db}/f $a {b}").unwrap(), "x1y/s/db/f $a {b}");
        assert_eq!(variables.fill("${b}").unwrap(), "${a}");
        assert!(variables.fill("${c}").unwrap_err().to_string().contains("known are: a, b, copy.db"));
        assert!(variables.fill("${a").is_err());
    }
}
