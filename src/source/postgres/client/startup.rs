//! From a socket to a session: TLS, the startup message, the password exchange.

use anyhow::{Context, Result, bail, ensure};
use bytes::BytesMut;
use postgres_protocol::authentication::md5_hash;
use postgres_protocol::authentication::sasl::{ChannelBinding, SCRAM_SHA_256, SCRAM_SHA_256_PLUS, ScramSha256};
use postgres_protocol::message::frontend;
use std::collections::HashMap;
use std::io::{Read, Write};

use super::received::Received;
use super::{Address, Binding, Client, Event, Host, PATIENCE, Session, TlsMode, binding};
use crate::error::{Failure, Kind, help_of};
use crate::net::{Check, Stream};

/// The oldest version that is supported, as in `server_version_num`.
const OLDEST: u32 = 130_000;

pub(super) fn connect(address: &Address, session: Session) -> Result<Client> {
    let stream = open(address).map_err(|e| out_of_reach(e, address))?;
    let mut client = Client {
        stream,
        received: Received::default(),
        output: BytesMut::new(),
        columns: Vec::new(),
        parameters: HashMap::new(),
        notices: Vec::new(),
        key: None,
        address: address.clone(),
        patience: address.connect.max(PATIENCE),
    };
    client.stream.set_write_timeout(Some(PATIENCE)).context("set how long to wait")?;
    let mut parameters = vec![
        ("user", address.user.as_str()),
        ("application_name", address.application.as_str()),
        ("client_encoding", "UTF8"),
    ];
    if let Some(database) = &address.database {
        parameters.push(("database", database));
    } else if session != Session::Replication {
        parameters.push(("database", "postgres"));
    }
    match session {
        Session::Plain => {}
        Session::Replication => parameters.push(("replication", "true")),
        Session::ReplicationAndSql => parameters.push(("replication", "database")),
    }
    frontend::startup_message(parameters, &mut client.output).context("write the startup message")?;
    client.flush()?;
    authenticate(&mut client)?;
    while client.next()? != Event::Ready {}
    let version = client.version();
    if version < OLDEST {
        let shown = client.parameter("server_version").unwrap_or("of an unknown version").to_owned();
        return Err(Failure::new(
            Kind::Failed,
            format!("the server at {address} is PostgreSQL {shown}, and 13 is the oldest that is supported"),
            "Nothing was done. Dump it with its own pg_dump through a source of kind `command`, and upgrade it.",
        ));
    }
    Ok(client)
}

fn out_of_reach(error: anyhow::Error, address: &Address) -> anyhow::Error {
    if help_of(&error).is_some() {
        return error;
    }
    let help = "Nothing was done, and what is stored is as it was. Is the server running, and does it listen at that address and port?";
    Failure::new(Kind::Failed, format!("the server at {address} cannot be reached: {error:#}"), help)
}

/// Asks the server to stop a command; the answer is that the connection is closed.
pub(super) fn cancel(address: &Address, process: i32, secret: i32) -> Result<()> {
    let mut stream = open(address)?;
    let mut request = BytesMut::new();
    frontend::cancel_request(process, secret, &mut request);
    stream.write_all(&request)?;
    stream.flush()?;
    stream.set_read_timeout(Some(address.connect))?;
    let mut end = [0];
    // Whether it comes as an end or as a reset does not matter.
    let _closed = stream.read(&mut end);
    Ok(())
}

/// The socket, with TLS where the address wants it.
fn open(address: &Address) -> Result<Stream> {
    let host = match &address.host {
        Host::Unix(_) => return Stream::unix(&address.socket().context("the socket has no path")?),
        Host::Tcp(host) => host,
    };
    let mut stream = Stream::tcp(host, address.port, address.connect)?;
    let check = match address.tls {
        TlsMode::Disable => return Ok(stream),
        TlsMode::Prefer | TlsMode::Require => Check::Nothing,
        TlsMode::VerifyCa => Check::Chain,
        TlsMode::VerifyFull => Check::ChainAndName,
    };
    stream.set_read_timeout(Some(address.connect))?;
    stream.set_write_timeout(Some(address.connect))?;
    let mut request = BytesMut::new();
    frontend::ssl_request(&mut request);
    stream.write_all(&request)?;
    stream.flush()?;
    let mut answer = [0];
    stream.read_exact(&mut answer).context("the server does not answer whether it has TLS")?;
    match (answer[0], address.tls) {
        (b'S', _) => stream.start_tls_with(host, &address.roots, check).map_err(|e| untrusted(e, address)),
        (b'N', TlsMode::Prefer) => Ok(stream),
        (b'N', _) => Err(Failure::new(
            Kind::Failed,
            format!("the server at {address} has no TLS, and the address wants it"),
            "Nothing was sent. Set ssl = on on the server with a certificate; or, where nobody can listen on the way, sslmode=disable in the address.",
        )),
        (other, _) => bail!("the server answers the request for TLS with {:?}: is it PostgreSQL?", char::from(other)),
    }
}

fn untrusted(error: anyhow::Error, address: &Address) -> anyhow::Error {
    if address.tls == TlsMode::Prefer || address.tls == TlsMode::Require {
        return error;
    }
    Failure::new(
        Kind::Failed,
        format!("the server's certificate cannot be trusted: {error:#}"),
        "Nothing was sent. Name the authority that signed it: sslrootcert=/path/ca.pem in the address; for another name than the certificate's \
         sslmode=verify-ca; sslmode=require encrypts without knowing who the server is.",
    )
}

/// Messages of the authentication, by their number.
const OK: u32 = 0;
const CLEARTEXT: u32 = 3;
const MD5: u32 = 5;
const SASL: u32 = 10;
const SASL_CONTINUE: u32 = 11;
const SASL_FINAL: u32 = 12;

fn authenticate(client: &mut Client) -> Result<()> {
    let mut exchanged = false;
    loop {
        let (request, data) = request(client)?;
        match request {
            OK => {
                ensure!(
                    exchanged || client.address.binding != Binding::Require,
                    "channel_binding=require, and the server let us in without"
                );
                return Ok(());
            }
            CLEARTEXT => {
                may_send_cleartext(&client.address)?;
                let password = password(client)?.as_bytes().to_vec();
                send_password(client, &zeroize::Zeroizing::new(password))?;
            }
            MD5 => {
                let salt = data.get(..4).and_then(|salt| salt.try_into().ok()).context("the server sent no salt")?;
                let hash = md5_hash(client.address.user.as_bytes(), password(client)?.as_bytes(), salt);
                send_password(client, hash.as_bytes())?;
            }
            SASL => {
                scram(client, &data)?;
                exchanged = true;
            }
            other => bail!(
                "the server wants an authentication of type {other} (GSSAPI, SSPI, …), which is not supported; \
                 give this role a line with scram-sha-256 in its pg_hba.conf"
            ),
        }
    }
}

/// The number of the next authentication message, and its data.
fn request(client: &mut Client) -> Result<(u32, Vec<u8>)> {
    let event = client.next()?;
    ensure!(event == Event::Authentication, "the server sends {event:?} before it has let us in");
    let (number, data) = client.body().split_first_chunk::<4>().context("a message is cut short")?;
    Ok((u32::from_be_bytes(*number), data.to_vec()))
}

fn password(client: &Client) -> Result<&str> {
    client.address.password.as_ref().map(|password| password.as_str()).ok_or_else(|| {
        Failure::new(
            Kind::Config,
            format!("the server at {} wants a password, and none is given", client.address),
            "Nothing was done. Give the source `password = { file = \"…\" }`, { env = … } or { credential = … } in the configuration; for `protect`, set \
             PGPASSWORD in its environment.",
        )
    })
}

/// Only where it cannot be read on the way, or by somebody who poses as the server.
fn may_send_cleartext(address: &Address) -> Result<()> {
    let proven = matches!(address.tls, TlsMode::VerifyCa | TlsMode::VerifyFull);
    if proven || address.is_local() {
        return Ok(());
    }
    Err(Failure::new(
        Kind::Failed,
        format!("the server at {address} wants the password in clear text, and nothing proves that it is the server"),
        "Nothing was sent. Use sslmode=verify-full, or scram-sha-256 in the server's pg_hba.conf.",
    ))
}

fn send_password(client: &mut Client, password: &[u8]) -> Result<()> {
    frontend::password_message(password, &mut client.output).context("write the password")?;
    client.flush()
}

fn scram(client: &mut Client, offered: &[u8]) -> Result<()> {
    let has = |mechanism: &str| offered.split(|b| *b == 0).any(|name| name == mechanism.as_bytes());
    let end_point = match client.address.binding {
        Binding::Disable => None,
        Binding::Prefer | Binding::Require => client.stream.server_certificate().and_then(binding::server_end_point),
    };
    let (mechanism, binding) = match end_point {
        Some(hash) if has(SCRAM_SHA_256_PLUS) => (SCRAM_SHA_256_PLUS, ChannelBinding::tls_server_end_point(hash)),
        // Tells the server that we could: one that can, too, then knows that somebody in between took the offer out.
        Some(_) => (SCRAM_SHA_256, ChannelBinding::unrequested()),
        None => (SCRAM_SHA_256, ChannelBinding::unsupported()),
    };
    ensure!(has(mechanism), "the server offers no way of authentication that is supported (SCRAM-SHA-256)");
    ensure!(
        mechanism == SCRAM_SHA_256_PLUS || client.address.binding != Binding::Require,
        "channel_binding=require, and the server does not offer it"
    );
    let mut exchange = ScramSha256::new(password(client)?.as_bytes(), binding);
    frontend::sasl_initial_response(mechanism, exchange.message(), &mut client.output).context("write a response")?;
    client.flush()?;
    let (number, data) = request(client)?;
    ensure!(number == SASL_CONTINUE, "the server breaks off the password exchange");
    exchange.update(&data).context("go on with the password exchange")?;
    frontend::sasl_response(exchange.message(), &mut client.output).context("write a response")?;
    client.flush()?;
    let (number, data) = request(client)?;
    ensure!(number == SASL_FINAL, "the server breaks off the password exchange");
    exchange
        .finish(&data)
        .context("the server does not know the password itself: it is not the server that it seems to be")
}
