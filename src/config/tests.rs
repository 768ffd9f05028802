//! What a configuration may say, and how it is told what it may not.

use super::*;

fn error(text: &str) -> String {
    let error = Config::parse(text, Path::new("/etc/b.toml")).unwrap_err();
    assert_eq!(crate::error::kind_of(&error), Kind::Config, "{error:#}");
    format!("{error:#} {}", crate::error::help_of(&error).unwrap_or_default())
}

#[test]
fn a_whole_configuration() {
    let text = "repository = \"repo\"\nbaseline = \"30d\"\n[[source]]\nname = \"a\"\nkind = \"files\"\npath = \"a\"\nrpo = \"1h\"\n\
                [source.retention]\ndaily = 7\nwithin = \"2d\"\n";
    let config = Config::parse(text, Path::new("/etc/b.toml")).unwrap();
    assert_eq!(config.location().unwrap(), "/etc/repo");
    assert_eq!(config.path_of(&config.source[0]).unwrap(), Path::new("/etc/a"));
    assert_eq!(config.baseline, Some(SignedDuration::from_hours(720)));
    assert_eq!(config.spool().unwrap(), None);
    let config = Config::parse("repository = \"s3://bucket\"\n", Path::new("/etc/b.toml")).unwrap();
    assert_eq!(config.spool().unwrap().unwrap().directory, Path::new("/etc/blackstart/state/spool"));
    assert_eq!(config.recovery_key(), Path::new("/etc/blackstart/keys/recovery.key"));
}

#[test]
fn errors_name_the_line_and_the_nearest_key() {
    let said = error("repository = \"r\"\n[[source]]\nname = \"a\"\nkind = \"files\"\npath = \"a\"\nrpoo = \"1h\"\n");
    assert!(said.contains("b.toml, line 6") && said.contains("`rpo`"), "{said}");
    let said = error("repository = \"r\"\n\nreposiory = \"x\"\n");
    assert!(said.contains("line 3") && said.contains("Did you mean `repository`"), "{said}");
    assert!(error("repository = \"r\"\ngrace = \"soon\"\n").contains("length of time"));
    assert!(error("repository = \"r\"\nspool = \"much\"\n").contains("is not a size"));
    let source = "[[source]]\nname = \"a\"\nkind = \"sqlite\"\npath = \"a\"\n";
    assert!(error(&format!("repository = \"r\"\n{source}{source}")).contains("two sources"));
}
