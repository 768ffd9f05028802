//! What an answer of an S3 server means to blackstart. Status codes decide, error codes where servers put several
//! meanings under one status.

use crate::storage::{Error, Kind};
use aws_sdk_s3::config::http::HttpResponse;
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use std::fmt;

/// Sorts a failed request. The source says what the server or the network said, without the request's headers.
pub fn failure<E>(operation: &'static str, key: impl fmt::Display, error: SdkError<E, HttpResponse>) -> Error
where
    E: std::error::Error + ProvideErrorMetadata + Send + Sync + 'static,
{
    let status = error.raw_response().map(|response| response.status().as_u16());
    let code = error.code().unwrap_or_default().to_owned();
    let kind = match (&error, status) {
        (SdkError::ServiceError(_), Some(status)) => kind_of(operation, status, &code),
        // Credentials that expired, or the metadata service not answering: the first calls for a person, but the
        // second passes, and tries are bounded.
        (SdkError::DispatchFailure(_) | SdkError::TimeoutError(_) | SdkError::ResponseError(_), _) => Kind::Transient,
        _ => Kind::Other,
    };
    Error::new(kind, operation, key).because(explain(&error, status, &code))
}

fn kind_of(operation: &str, status: u16, code: &str) -> Kind {
    match (status, code) {
        (_, "NoSuchBucket") => Kind::NoStore,
        (_, "NotImplemented") => Kind::Unsupported,
        (_, "QuotaExceeded" | "XMinioStorageFull" | "EntityTooLarge") if status != 400 => Kind::Full,
        // The body was cut or changed on its way.
        (400, "RequestTimeout" | "IncompleteBody" | "BadDigest" | "XAmzContentChecksumMismatch") => Kind::Transient,
        (400, "ExpiredToken" | "InvalidToken") => Kind::Denied,
        (412, _) if operation == "create" => Kind::AlreadyExists,
        (412, _) => Kind::Conflict,
        (404, _) => Kind::NotFound,
        (416, _) => Kind::Truncated,
        (403, "InvalidObjectState") => Kind::Archived,
        (401 | 403, _) => Kind::Denied,
        // It knows neither the question nor that it does not: some servers answer every unknown query with a listing.
        (200, _) if operation == "setup" => Kind::Unsupported,
        (405 | 501, _) => Kind::Unsupported,
        (507, _) => Kind::Full,
        (408 | 409 | 425 | 429 | 500.., _) => Kind::Transient,
        _ => Kind::Other,
    }
}

fn explain<E>(error: &SdkError<E, HttpResponse>, status: Option<u16>, code: &str) -> String
where
    E: std::error::Error + ProvideErrorMetadata + Send + Sync + 'static,
{
    if let (SdkError::ServiceError(_), Some(status)) = (error, status) {
        return match (code, error.message()) {
            ("NoSuchBucket", _) => "the bucket does not exist; create it, or correct its name".into(),
            ("", _) => format!("HTTP status {status}"),
            (code, None) => format!("{code}, HTTP status {status}"),
            (code, Some(message)) => format!("{code}: {message}, HTTP status {status}"),
        };
    }
    // The chain repeats itself: each layer of the SDK and of hyper prints what is below it.
    let mut parts: Vec<String> = Vec::new();
    let mut next: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = next {
        let text = error.to_string();
        if parts.last().is_none_or(|last| !last.contains(&text)) {
            parts.push(text);
        }
        next = error.source();
    }
    parts.join(": ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_sorted() {
        for (operation, status, code, kind) in [
            ("create", 412, "PreconditionFailed", Kind::AlreadyExists),
            ("replace", 412, "PreconditionFailed", Kind::Conflict),
            ("create", 409, "ConditionalRequestConflict", Kind::Transient),
            ("create", 501, "NotImplemented", Kind::Unsupported),
            ("create", 400, "NotImplemented", Kind::Unsupported),
            ("get", 404, "NoSuchKey", Kind::NotFound),
            ("get", 404, "NoSuchBucket", Kind::NoStore),
            ("get", 416, "InvalidRange", Kind::Truncated),
            ("delete", 403, "AccessDenied", Kind::Denied),
            ("get", 403, "InvalidObjectState", Kind::Archived),
            ("create", 503, "SlowDown", Kind::Transient),
            ("create", 400, "BadDigest", Kind::Transient),
            ("create", 400, "InvalidArgument", Kind::Other),
            ("create", 507, "XMinioStorageFull", Kind::Full),
        ] {
            assert_eq!(kind_of(operation, status, code), kind, "{operation} {status} {code}");
        }
    }
}
