//! Blocking connections to engines: TCP, Unix sockets, and TLS on top of TCP.
//!
//! Engines are talked to by plain code on the thread of their source; every wait has a bound.

use anyhow::{Context, Result, bail};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject};
use rustls::{
    CertificateError, ClientConfig, ClientConnection, DigitallySignedStruct, RootCertStore, SignatureScheme,
    StreamOwned,
};
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
                    keep_alive(&socket).context("set up the connection")?;
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
        self.start_tls_with(host, roots, Check::ChainAndName)
    }

    /// As [`Stream::start_tls`], with less to be proven.
    pub fn start_tls_with(self, host: &str, roots: &Roots, check: Check) -> Result<Stream> {
        let Stream::Tcp(mut socket) = self else { bail!("TLS runs over TCP only") };
        let name = ServerName::try_from(host.to_owned()).with_context(|| format!("{host} is no name of a server"))?;
        let mut session = ClientConnection::new(roots.client_that_checks(check)?, name).context("begin TLS")?;
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

/// A peer that has gone without a word is noticed within two minutes, however long its answer may take otherwise.
fn keep_alive(socket: &TcpStream) -> Result<(), rustix::io::Errno> {
    rustix::net::sockopt::set_socket_keepalive(socket, true)?;
    rustix::net::sockopt::set_tcp_keepidle(socket, Duration::from_secs(60))?;
    rustix::net::sockopt::set_tcp_keepintvl(socket, Duration::from_secs(10))?;
    rustix::net::sockopt::set_tcp_keepcnt(socket, 6)
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
        self.client_that_checks(Check::ChainAndName)
    }

    fn client_that_checks(&self, check: Check) -> Result<Arc<ClientConfig>> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .context("set up TLS")?;
        let config = match check {
            Check::ChainAndName => builder.with_root_certificates(self.store()?),
            Check::Chain => {
                let chain = WebPkiServerVerifier::builder_with_provider(Arc::new(self.store()?), Arc::clone(&provider))
                    .build()
                    .context("set up TLS")?;
                let verifier = Lenient { provider, chain: Some(chain) };
                builder.dangerous().with_custom_certificate_verifier(Arc::new(verifier))
            }
            Check::Nothing => {
                let verifier = Lenient { provider, chain: None };
                builder.dangerous().with_custom_certificate_verifier(Arc::new(verifier))
            }
        };
        Ok(Arc::new(config.with_no_client_auth()))
    }

    fn store(&self) -> Result<RootCertStore> {
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
        Ok(store)
    }
}

/// What a server's certificate must prove.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Check {
    /// Nothing: what is sent is encrypted, to whomever.
    Nothing,
    /// A trusted authority has signed it, for whatever name.
    Chain,
    ChainAndName,
}

/// Proves the chain without the name, or nothing. The handshake itself is always checked: the server has the certificate's key.
#[derive(Debug)]
struct Lenient {
    provider: Arc<CryptoProvider>,
    chain: Option<Arc<WebPkiServerVerifier>>,
}

impl ServerCertVerifier for Lenient {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> std::result::Result<ServerCertVerified, rustls::Error> {
        let Some(chain) = &self.chain else { return Ok(ServerCertVerified::assertion()) };
        match chain.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now) {
            // The name is checked last, when the chain has proven good.
            Err(rustls::Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) => Ok(ServerCertVerified::assertion()),
            verified => verified,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
