//! Where a Redis server is: `redis://[user[:password]@]host[:port]`, `rediss://…` (TLS), `unix://[user[:password]@]/path/to/socket`.
//!
//! The scheme is that of <https://www.iana.org/assignments/uri-schemes/prov/redis>; a database number in the path is ignored, since a
//! backup has all databases.

use anyhow::Result;
use std::fmt;
use std::path::PathBuf;
use zeroize::Zeroizing;

use crate::error::{Failure, Kind};

const PORT: u16 = 6379;

/// The variable that `redis-cli` and `valkey-cli` take a password from.
pub const PASSWORD: &str = "REDISCLI_AUTH";

/// What addresses begin with.
pub const SCHEMES: [&str; 6] = ["redis", "rediss", "valkey", "valkeys", "unix", "redis+unix"];

/// A parsed address.
#[derive(Clone)]
pub struct Address {
    pub endpoint: Endpoint,
    pub user: Option<String>,
    pub password: Option<Zeroizing<String>>,
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.endpoint)
    }
}

/// The address without user and password: what may be shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Endpoint {
    Tcp { host: String, port: u16, tls: bool },
    Unix(PathBuf),
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Endpoint::Tcp { host, port, tls } => {
                let scheme = if *tls { "rediss" } else { "redis" };
                let host = if host.contains(':') { format!("[{host}]") } else { host.clone() };
                write!(f, "{scheme}://{host}:{port}")
            }
            Endpoint::Unix(path) => write!(f, "unix://{}", path.display()),
        }
    }
}

impl Address {
    /// Fails with `Kind::Config`, and never quotes the address: there may be a password in it.
    pub fn parse(url: &str) -> Result<Address> {
        let (scheme, rest) = url.split_once("://").ok_or_else(|| wrong("it has no scheme"))?;
        let tls = match scheme {
            "redis" | "valkey" => false,
            "rediss" | "valkeys" => true,
            "unix" | "redis+unix" => return on_socket(rest),
            _ => return Err(wrong("its scheme is none of redis, rediss, unix")),
        };
        let (login, place) = rest.rsplit_once('@').map_or((None, rest), |(login, place)| (Some(login), place));
        let place = place.split(['/', '?', '#']).next().unwrap_or_default();
        let (host, port) = host_and_port(place)?;
        let (user, password) = login.map_or(Ok((None, None)), who)?;
        Ok(Address { endpoint: Endpoint::Tcp { host, port, tls }, user, password })
    }
}

impl Address {
    /// As [`Address::parse`], for what is written where others can read it.
    pub fn without_password(url: &str) -> Result<Address> {
        let address = Address::parse(url)?;
        if address.password.is_none() {
            return Ok(address);
        }
        let help = format!(
            "Nothing was done. Put it where only this user can read it, and name that in the configuration: password = {{ file = \"…\" }}. For \
             `protect`, set {PASSWORD} in its environment."
        );
        Err(Failure::new(Kind::Config, "the address has a password in it, for everybody to read", help))
    }
}

/// What follows `unix://`: `[user[:password]@]/path/to/socket`.
fn on_socket(rest: &str) -> Result<Address> {
    let (login, path) = match rest.split_once('@') {
        Some((login, path)) if !login.contains('/') => (Some(login), path),
        _ => (None, rest),
    };
    let path = path.split('?').next().unwrap_or_default();
    if !path.starts_with('/') || path.len() == 1 {
        return Err(wrong("the path of a socket begins with `/`"));
    }
    let (user, password) = login.map_or(Ok((None, None)), who)?;
    Ok(Address { endpoint: Endpoint::Unix(path.into()), user, password })
}

/// `user[:password]`, either of which may be empty.
fn who(login: &str) -> Result<(Option<String>, Option<Zeroizing<String>>)> {
    let (name, word) = login.split_once(':').map_or((login, None), |(name, word)| (name, Some(word)));
    let user = Some(decoded(name)?.to_string()).filter(|name| !name.is_empty());
    Ok((user, word.map(decoded).transpose()?.filter(|word| !word.is_empty())))
}

fn host_and_port(place: &str) -> Result<(String, u16)> {
    let (host, port) = match place.strip_prefix('[') {
        Some(rest) => {
            let (host, after) = rest.split_once(']').ok_or_else(|| wrong("a `[` has no `]`"))?;
            (host, after.strip_prefix(':'))
        }
        None => place.split_once(':').map_or((place, None), |(host, port)| (host, Some(port))),
    };
    let port = match port {
        Some(port) => port.parse().map_err(|_| wrong("its port is no number from 1 to 65535"))?,
        None => PORT,
    };
    if host.is_empty() {
        return Err(wrong("it names no host"));
    }
    Ok((host.to_owned(), port))
}

/// `%41` becomes `A`.
fn decoded(text: &str) -> Result<Zeroizing<String>> {
    let mut bytes = Zeroizing::new(Vec::with_capacity(text.len()));
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let mut digit = || rest.next().and_then(|d| char::from(d).to_digit(16));
        let (Some(high), Some(low)) = (digit(), digit()) else { return Err(wrong("a `%` begins no escape")) };
        bytes.push((high * 16 + low) as u8);
    }
    String::from_utf8(bytes.to_vec()).map(Zeroizing::new).map_err(|_| wrong("an escape is not UTF-8"))
}

fn wrong(why: &str) -> anyhow::Error {
    Failure::new(
        Kind::Config,
        format!("the address of the Redis server cannot be read: {why}"),
        "Nothing was done. Write it as redis://HOST:PORT, rediss://USER@HOST:PORT (TLS) or unix:///path/to/socket, and the password as `password = { file = \"…\" }`.",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        let show = |url: &str| Address::parse(url).unwrap().endpoint.to_string();
        assert_eq!(show("redis://localhost"), "redis://localhost:6379");
        assert_eq!(show("rediss://u:p%40w@db.example:6380/3?x=y"), "rediss://db.example:6380");
        assert_eq!(show("redis://[::1]:7000/0"), "redis://[::1]:7000");
        assert_eq!(show("unix:///run/redis.sock?db=2"), "unix:///run/redis.sock");
        let address = Address::parse("redis://u:p%40w%C3%A9@h").unwrap();
        assert_eq!((address.user.as_deref(), address.password.unwrap().as_str()), (Some("u"), "p@wé"));
        let address = Address::parse("unix://u:p%40w@/run/a@b").unwrap();
        assert_eq!((address.user.as_deref(), address.password.unwrap().as_str()), (Some("u"), "p@w"));
        assert_eq!(
            (show("unix://u@/run/s"), show("unix:///run/a@b")),
            ("unix:///run/s".into(), "unix:///run/a@b".into())
        );
        let address = Address::parse("redis://:secret@h").unwrap();
        assert!(!format!("{address:?}").contains("secret"));
        assert_eq!((address.user, address.password.unwrap().as_str()), (None, "secret"));
        for bad in
            ["localhost", "http://h", "redis://", "redis://h:x", "redis://[::1", "unix://relative", "redis://u:%zz@h"]
        {
            let error = Address::parse(bad).unwrap_err();
            assert_eq!(crate::error::kind_of(&error), Kind::Config, "{bad}");
        }
        assert!(!format!("{:#}", Address::parse("redis://u:hunter2@h:x").unwrap_err()).contains("hunter2"));
    }
}
