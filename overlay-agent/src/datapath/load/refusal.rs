//! What the kernel says when it does not take the object, told apart by what there is to do.

use std::io;

use aya::{EbpfError, maps::MapError, pin::PinError, programs::ProgramError, sys::SyscallError};

use crate::datapath::error::DatapathError;

pub fn program_error(name: &str, error: ProgramError) -> DatapathError {
    match error {
        ProgramError::LoadError {
            io_error,
            verifier_log,
        } if !is_refusal(&io_error) => DatapathError::Verifier {
            program: name.to_owned(),
            source: io_error,
            log: verifier_log.to_string(),
        },
        // The verifier also says EPERM, and then explains itself.
        ProgramError::LoadError {
            io_error,
            verifier_log,
        } => {
            let log = verifier_log.to_string();
            if log.trim().is_empty() {
                DatapathError::Refused {
                    step: "loading a program",
                    source: io_error,
                }
            } else {
                DatapathError::Verifier {
                    program: name.to_owned(),
                    source: io_error,
                    log,
                }
            }
        }
        other => DatapathError::Object {
            source: EbpfError::ProgramError(other),
        },
    }
}

pub fn object_error(error: EbpfError) -> DatapathError {
    match error {
        EbpfError::MapError(MapError::CreateError { io_error, .. }) if is_refusal(&io_error) => {
            DatapathError::Refused {
                step: "creating a map",
                source: io_error,
            }
        }
        EbpfError::MapError(MapError::PinError {
            error: PinError::SyscallError(SyscallError { io_error, .. }),
            ..
        }) if is_refusal(&io_error) => DatapathError::Refused {
            step: "pinning a map",
            source: io_error,
        },
        source => DatapathError::Object { source },
    }
}

/// `ENOSYS`: the kernel was built without BPF, or a seccomp filter says so.
fn is_refusal(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EPERM | libc::EACCES | libc::ENOSYS)
    )
}
