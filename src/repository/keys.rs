//! Key files. A key file is an age identity file in which everything of ours is a comment, so that `age -d -i FILE` takes it as it is.

use anyhow::Result;
use base64::prelude::{BASE64_STANDARD, Engine};
use std::path::Path;
use zeroize::Zeroizing;

use super::agefile::Identity;
use super::signed::SigningKey;
use crate::error::{Failure, Kind};
use crate::secret;

const SIGNING: &str = "# blackstart-signing-key: ";

/// An age identity and an Ed25519 key that belong together: the recovery identity with the root key, or a host's index identity with its signing key.
pub struct KeyPair {
    pub identity: Identity,
    pub signing: SigningKey,
}

impl KeyPair {
    pub fn generate() -> Result<KeyPair> {
        Ok(KeyPair { identity: Identity::generate(), signing: SigningKey::generate()? })
    }

    /// The text of the key file, under `title` (lines for the person who finds it).
    pub fn to_text(&self, title: &str) -> Zeroizing<String> {
        use age::secrecy::ExposeSecret;
        let mut text = Zeroizing::new(String::new());
        for line in title.lines() {
            text.push_str(&format!("# {line}\n"));
        }
        text.push_str(&format!(
            "# public key: {}\n# signing key id: {}\n",
            self.identity.to_public(),
            self.signing.public().id()
        ));
        text.push_str(SIGNING);
        text.push_str(&Zeroizing::new(BASE64_STANDARD.encode(self.signing.seed())));
        text.push('\n');
        text.push_str(self.identity.to_string().expose_secret());
        text.push('\n');
        text
    }

    pub fn read(path: &Path) -> Result<KeyPair> {
        let keys = KeyFile::read(path)?;
        let help = "Nothing was changed. Give the key file that `init` wrote.";
        let identity = keys.identities.into_iter().next();
        let (Some(identity), Some(signing)) = (identity, keys.signing) else {
            return Err(Failure::new(Kind::WrongKey, format!("{} is not a blackstart key file", path.display()), help));
        };
        Ok(KeyPair { identity, signing })
    }
}

/// What a key file holds; a plain age identity file has no signing key.
pub struct KeyFile {
    pub identities: Vec<Identity>,
    pub signing: Option<SigningKey>,
}

fn malformed(path: &Path, why: &str) -> anyhow::Error {
    let help = "Nothing was changed. Compare the file with that of the break-glass kit, line by line: is it the right one, and are letters lost or mistyped? \
                Another copy of it may be whole.";
    Failure::new(Kind::WrongKey, format!("{} is no key file: {why}", path.display()), help)
}

impl KeyFile {
    pub fn read(path: &Path) -> Result<KeyFile> {
        let text = std::fs::read_to_string(path).map(Zeroizing::new).map_err(|e| {
            if e.kind() == std::io::ErrorKind::PermissionDenied {
                return secret::of_somebody_else(path, &format!("read key file {}: {e}", path.display()));
            }
            Failure::new(
                Kind::WrongKey,
                format!("read key file {}: {e}", path.display()),
                "Nothing was changed. The recovery key file lies off this machine, with the break-glass kit. A host key lies nowhere else: \
                 `blackstart init --repo LOCATION --identity RECOVERY_KEY_FILE` makes and certifies a new one; that costs one full read, no data.",
            )
        })?;
        let mut keys = KeyFile { identities: Vec::new(), signing: None };
        for line in text.lines().map(str::trim) {
            if let Some(seed) = line.strip_prefix(SIGNING.trim_end()) {
                let seed = BASE64_STANDARD.decode(seed.trim()).map(Zeroizing::new).ok().filter(|seed| seed.len() == 32);
                let seed = seed.ok_or_else(|| malformed(path, "its signing key is damaged"))?;
                let mut bytes = Zeroizing::new([0u8; 32]);
                bytes.copy_from_slice(&seed);
                keys.signing = Some(SigningKey::from_seed(*bytes)?);
            } else if line.starts_with("AGE-SECRET-KEY-") {
                // The parser's error does not carry the line.
                let identity = line.parse().map_err(|e| malformed(path, &format!("its age key is damaged: {e}")))?;
                keys.identities.push(identity);
            }
        }
        if keys.identities.is_empty() && keys.signing.is_none() {
            return Err(malformed(path, "it holds no key"));
        }
        Ok(keys)
    }
}
