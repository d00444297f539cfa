//! Handles of pinned maps.

use std::os::fd::{AsFd as _, OwnedFd};

use aya::maps::{Map, MapData, MapError, MapInfo};

use crate::datapath::{error::DatapathError, pins::PinDir};

/// Opens one pinned map: its handle, a descriptor for batched reads, and its capacity.
pub fn open(pins: &PinDir, name: &'static str) -> Result<(Map, OwnedFd, u32), DatapathError> {
    let error = map_error("open", name);
    let path = pins.map(name);
    let parts = MapData::from_pin(&path).and_then(|data| {
        let fd = data
            .fd()
            .as_fd()
            .try_clone_to_owned()
            .map_err(MapError::IoError)?;
        let max_entries = MapInfo::from_pin(&path)?.max_entries();
        Ok((Map::from_map_data(data)?, fd, max_entries))
    });
    match parts {
        Ok(parts) => Ok(parts),
        Err(_) if !path.exists() => Err(pins.not_pinned()),
        Err(source) => Err(error(source)),
    }
}

pub fn typed<T: TryFrom<Map, Error = MapError>>(
    map: Map,
    name: &'static str,
) -> Result<T, DatapathError> {
    T::try_from(map).map_err(map_error("open", name))
}

/// Removing what is not there is what was wanted.
pub fn gone_is_fine(result: Result<(), MapError>) -> Result<(), MapError> {
    match result {
        Err(MapError::KeyNotFound) => Ok(()),
        Err(MapError::SyscallError(error))
            if error.io_error.kind() == std::io::ErrorKind::NotFound =>
        {
            Ok(())
        }
        other => other,
    }
}

pub fn map_error(
    action: &'static str,
    map: &'static str,
) -> impl Fn(MapError) -> DatapathError + Copy {
    move |source| DatapathError::Map {
        action,
        map,
        source,
    }
}
