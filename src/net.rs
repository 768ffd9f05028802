//! Blocking connections to engines: TCP, Unix sockets, and TLS on top of TCP.
//!
//! Engines are talked to by plain code on the thread of their source; every wait has a bound.

use anyhow::{Context, Result, bail};
use rustls::pki_types::{CertificateDer, ServerName, pem::PemObject};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// A connection to a server.
pub enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
    Tls(Box<StreamOwned<ClientConnection, TcpStream>>),
}

impl Stream {
    /// Connects to the first address of `host` that answers, each tried for at most `wait`.
    pub fn tcp(host: &str, port: u16, wait: Duration) -> Result<Stream> {
        let addresses = (host, port).to_socket_addrs().with_context(|| format!("look up {host}"))?;
        let mut last = None;
        for address in addresses {
            match TcpStream::connect_timeout(&address, wait) {
                Ok(socket) => {
                    socket.set_nodelay(true).context("set up the connection")?;
                    return Ok(Stream::Tcp(socket));
                }
                Err(e) => last = Some(e),
            }
        }
        match last {
            Some(e) => Err(e).with_context(|| format!("connect to {host}, port {port}")),
            None => bail!("{host} has no address"),
        }
    }

    pub fn unix(path: &Path) -> Result<Stream> {
        UnixStream::connect(path).map(Stream::Unix).with_context(|| format!("connect to {}", path.display()))
    }

    /// Begins TLS; the server's certificate must be valid for `host` under `roots`.
    pub fn start_tls(self, host: &str, roots: &Roots) -> Result<Stream> {
        let Stream::Tcp(mut socket) = self else { bail!("TLS runs over TCP only") };
        let name = ServerName::try_from(host.to_owned()).with_context(|| format!("{host} is no name of a server"))?;
        let mut session = ClientConnection::new(roots.client()?, name).context("begin TLS")?;
        while session.is_handshaking() {
            session.complete_io(&mut socket).with_context(|| format!("agree on TLS with {host}"))?;
        }
        Ok(Stream::Tls(Box::new(StreamOwned::new(session, socket))))
    }

    /// A read fails with `WouldBlock` or `TimedOut` after `wait`; `None` waits for ever.
    pub fn set_read_timeout(&self, wait: Option<Duration>) -> io::Result<()> {
        match self {
            Stream::Tcp(socket) => socket.set_read_timeout(wait),
            Stream::Unix(socket) => socket.set_read_timeout(wait),
            Stream::Tls(tls) => tls.sock.set_read_timeout(wait),
        }
    }

    pub fn set_write_timeout(&self, wait: Option<Duration>) -> io::Result<()> {
        match self {
            Stream::Tcp(socket) => socket.set_write_timeout(wait),
            Stream::Unix(socket) => socket.set_write_timeout(wait),
            Stream::Tls(tls) => tls.sock.set_write_timeout(wait),
        }
    }

    /// The certificate that the server showed (DER), for channel binding; none without TLS.
    pub fn server_certificate(&self) -> Option<&[u8]> {
        let Stream::Tls(tls) = self else { return None };
        tls.conn.peer_certificates()?.first().map(|certificate| certificate.as_ref())
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Stream::Tcp(socket) => socket.read(buffer),
            Stream::Unix(socket) => socket.read(buffer),
            Stream::Tls(tls) => tls.read(buffer),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Stream::Tcp(socket) => socket.write(bytes),
            Stream::Unix(socket) => socket.write(bytes),
            Stream::Tls(tls) => tls.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Stream::Tcp(socket) => socket.flush(),
            Stream::Unix(socket) => socket.flush(),
            Stream::Tls(tls) => tls.flush(),
        }
    }
}

/// Whom to believe that a server is who it says.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Roots {
    /// What the system trusts.
    #[default]
    System,
    /// The PEM certificates of a file alone.
    File(std::path::PathBuf),
}

impl Roots {
    /// A client configuration on the one crypto provider. rustls offers TLS 1.2 and 1.3.
    pub fn client(&self) -> Result<Arc<ClientConfig>> {
        let mut store = RootCertStore::empty();
        match self {
            Roots::System => {
                let found = rustls_native_certs::load_native_certs();
                store.add_parsable_certificates(found.certs);
            }
            Roots::File(path) => {
                let certificates = CertificateDer::pem_file_iter(path)
                    .with_context(|| format!("read the certificates in {}", path.display()))?;
                for certificate in certificates {
                    let certificate =
                        certificate.with_context(|| format!("read the certificates in {}", path.display()))?;
                    store.add(certificate).with_context(|| format!("a certificate in {}", path.display()))?;
                }
            }
        }
        if store.is_empty() {
            bail!("no certificate authority is trusted: install ca-certificates, or name a file of PEM certificates");
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .context("set up TLS")?
            .with_root_certificates(store)
            .with_no_client_auth();
        Ok(Arc::new(config))
    }
}
