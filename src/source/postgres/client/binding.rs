//! `tls-server-end-point` (RFC 5929): the hash of the server's certificate that SCRAM-SHA-256-PLUS signs, so that nobody between us and the
//! server can pass the exchange on.

use sha2::{Digest, Sha224, Sha256, Sha384, Sha512};

/// The hash of a DER certificate by the hash of its own signature, MD5 and SHA-1 replaced by SHA-256. `None` where the algorithm has no such
/// hash (Ed25519, RSA-PSS): then there is no channel binding, on the server's side neither.
pub fn server_end_point(certificate: &[u8]) -> Option<Vec<u8>> {
    let (_, certificate_body, _) = element(certificate)?;
    let (_, _, after_contents) = element(certificate_body)?;
    let (_, algorithm, _) = element(after_contents)?;
    let (tag, oid, _) = element(algorithm)?;
    if tag != 6 {
        return None;
    }
    // 1.2.840.113549.1.1.n: RSA; 1.2.840.10045.4.…: ECDSA.
    Some(match oid {
        [0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 4 | 5 | 11] => Sha256::digest(certificate).to_vec(),
        [0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 12] => Sha384::digest(certificate).to_vec(),
        [0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 13] => Sha512::digest(certificate).to_vec(),
        [0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 14] => Sha224::digest(certificate).to_vec(),
        [0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 1] | [0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 2] => {
            Sha256::digest(certificate).to_vec()
        }
        [0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 1] => Sha224::digest(certificate).to_vec(),
        [0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 3] => Sha384::digest(certificate).to_vec(),
        [0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 4] => Sha512::digest(certificate).to_vec(),
        _ => return None,
    })
}

/// The first DER element: its tag, its contents, and what follows it.
fn element(der: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&tag, rest) = der.split_first()?;
    let (&first, rest) = rest.split_first()?;
    let (length, rest) = if first < 0x80 {
        (usize::from(first), rest)
    } else {
        let (bytes, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
        (bytes.iter().try_fold(0usize, |n, b| n.checked_mul(256)?.checked_add(usize::from(*b)))?, rest)
    };
    let (contents, after) = rest.split_at_checked(length)?;
    Some((tag, contents, after))
}
