//! Which keys make a check, and which copy it is about.

use super::CheckOf;
use crate::repository::layout::SourceName;

/// A source that stages above restore, and its kind as in the configuration or in a commit.
pub type Kinds<'a> = (&'a SourceName, &'a str);

impl CheckOf {
    /// That it is one check, with what belongs to it. `restored`: what stages above have restored.
    pub fn validate(&self, restored: &[Kinds]) -> Result<(), String> {
        let kinds = [
            self.sql.is_some(),
            self.newest.is_some(),
            self.redis.is_some(),
            self.chroma.is_some(),
            self.http.is_some(),
            self.command.is_some(),
            self.sha256.is_some(),
            self.files.is_some(),
        ];
        if kinds.iter().filter(|k| **k).count() != 1 {
            return Err("a check is one of sql, newest, redis, chroma, http, command, sha256, files".into());
        }
        if let Some((_, why)) = self.out_of_place().iter().find(|(wrong, _)| *wrong) {
            return Err((*why).into());
        }
        let about_a_copy = self.is_asked() || (self.files.is_some() && self.within.is_some());
        if about_a_copy && (self.file.is_none() || self.newest.is_some()) {
            self.about(restored).map(drop)
        } else {
            Ok(())
        }
    }

    fn out_of_place(&self) -> [(bool, &'static str); 15] {
        let asks = self.sql.is_some() || self.newest.is_some();
        let (redis, chroma, files) = (self.redis.is_some(), self.chroma.is_some(), self.files.is_some());
        let searches = self.nearest.is_some() || self.nearest_to.is_some();
        let counts = self.sql.is_some() || redis || files || (chroma && !searches);
        [
            (self.newest.is_some() && self.within.is_none(), "`newest` and `within` go together"),
            (
                self.newest.is_none() && !redis && !files && self.within.is_some(),
                "`within` belongs to `newest`, `redis` or `files`",
            ),
            (self.sha256.is_some() && self.file.is_none(), "`sha256` needs the `file`"),
            (self.sha256.is_none() && !asks && self.file.is_some(), "`file` belongs to `sql`, `newest` or `sha256`"),
            (self.http.is_none() && self.status.is_some(), "`status` belongs to `http`"),
            (
                self.contains.is_some() && self.http.is_none() && self.command.is_none() && !redis && !searches,
                "`contains` belongs to `http`, `command`, `redis` or a search in `chroma`",
            ),
            (self.command.as_ref().is_some_and(Vec::is_empty), "there is no program to run"),
            (self.redis.as_ref().is_some_and(Vec::is_empty), "there is no command to ask"),
            (
                !self.is_asked() && !files && self.source.is_some(),
                "`source` belongs to `sql`, `newest`, `redis`, `chroma` or `files`",
            ),
            (
                !counts && (self.at_least.is_some() || self.at_most.is_some()),
                "`at_least` and `at_most` belong to `sql`, `redis`, `files` or a count in `chroma`",
            ),
            (
                self.sql.is_none() && !redis && !searches && self.equals.is_some(),
                "`equals` belongs to `sql`, `redis` or a search in `chroma`",
            ),
            (!chroma && searches, "`nearest` and `nearest_to` belong to `chroma`"),
            (self.nearest.is_some() && self.nearest_to.is_some(), "a search is by `nearest` or by `nearest_to`"),
            (!self.is_asked() && self.database.is_some(), "`database` belongs to `sql`, `newest`, `redis` or `chroma`"),
            (
                redis && self.database.as_ref().is_some_and(|d| d.parse::<u32>().is_err()),
                "the `database` of `redis` is a number in quotes: \"0\"",
            ),
        ]
    }

    /// Whether it is a question to a copy, or to the engine on it.
    pub(super) fn is_asked(&self) -> bool {
        self.sql.is_some() || self.newest.is_some() || self.redis.is_some() || self.chroma.is_some()
    }

    /// The copy that it is about: the one named, or the only one that it fits.
    pub(super) fn about(&self, restored: &[Kinds]) -> Result<SourceName, String> {
        let wanted: &[&str] = match (&self.redis, &self.chroma, &self.files) {
            (Some(_), ..) => &["redis"],
            (_, Some(_), _) => &["chroma"],
            (.., Some(_)) => &[],
            _ => &["sqlite", "postgres", "postgres-logical"],
        };
        if let Some(source) = &self.source {
            let Some((_, kind)) = restored.iter().find(|(name, _)| *name == source) else {
                return Err(format!("{source} is not restored by a stage above"));
            };
            let strict = self.redis.is_some() || self.chroma.is_some();
            return match strict && !wanted.contains(kind) {
                true => Err(format!("{source} is of kind {kind}, and this asks {}", wanted.join(", "))),
                false => Ok(source.clone()),
            };
        }
        let fitting: Vec<&Kinds> = restored.iter().filter(|(_, kind)| wanted.contains(kind)).collect();
        match (fitting.as_slice(), restored) {
            ([(one, _)], _) | ([], [(one, _)])
                if self.redis.is_none() && self.chroma.is_none() || fitting.len() == 1 =>
            {
                Ok((*one).clone())
            }
            _ => Err("which copy? Name the `source`, restored above, or a `file`".into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_checks_are_refused() {
        let (a, b) = (SourceName::new("a").unwrap(), SourceName::new("b").unwrap());
        let told = |text: &str| {
            let restored = [(&a, "postgres"), (&b, "redis")];
            toml::from_str::<CheckOf>(text).unwrap().validate(&restored)
        };
        let refused = |text: &str| toml::from_str::<CheckOf>(text).unwrap().validate(&[]).unwrap_err();
        assert!(refused("at_least = 1").contains("one of"));
        assert!(refused("sql = 'q'\nhttp = 'u'").contains("one of"));
        assert!(refused("sql = 'q'").contains("which copy"));
        assert!(refused("newest = 'q'\nfile = 'f'").contains("within"));
        assert!(refused("http = 'u'\nat_least = 1").contains("belong"));
        assert!(refused("sql = 'q'\nsource = 'x'").contains("not restored"));
        assert!(refused("redis = ['PING']").contains("which copy"));
        assert!(refused("redis = []").contains("no command"));
        assert!(refused("chroma = 'c'\nnearest_to = 'a'\nat_least = 1").contains("belong"));
        assert!(refused("sql = 'q'\nnearest = [1.0]").contains("belong to `chroma`"));
        assert!(told("chroma = 'c'").unwrap_err().contains("which copy"));
        assert!(told("redis = ['PING']\nsource = 'a'").unwrap_err().contains("of kind postgres"));
        assert!(told("redis = ['GET', 'a']\ndatabase = 'x'").unwrap_err().contains("number"));
        // The only one that fits need not be named.
        assert_eq!(told("redis = ['PING']"), Ok(()));
        assert_eq!(told("sql = 'q'\ndatabase = 'shop'"), Ok(()));
        assert_eq!(told("files = 'd'\nat_least = 1"), Ok(()));
        assert!(told("files = 'd'\nwithin = '1h'").unwrap_err().contains("which copy"));
    }
}
