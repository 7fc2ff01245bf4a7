//! The rows of the index, as JSON.
//!
//! Refuses to be a format: nothing reads them but the program that wrote them, and a row that does not parse is as good as none.

use crate::ids::{Digest, ImageId, ImageName, InfoHash};
use crate::store::{Description, ImageRecord};
use crate::units::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageRow {
    pub id: ImageId,
    pub name: ImageName,
    pub chain: Vec<Digest>,
    pub virtual_size_bytes: Bytes,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObjectRow {
    pub digest: Digest,
    pub parent: Digest,
    pub len_bytes: Bytes,
    pub info_hash: Option<InfoHash>,
    pub meta_info_hash: Option<InfoHash>,
}

impl ImageRow {
    pub(super) fn of(image: &ImageRecord) -> ImageRow {
        ImageRow {
            id: image.id(),
            name: image.name.clone(),
            chain: image.chain.clone(),
            virtual_size_bytes: image.virtual_size,
        }
    }
}

impl ObjectRow {
    pub(super) fn of(object: &Description) -> ObjectRow {
        ObjectRow {
            digest: object.digest,
            parent: object.parent,
            len_bytes: object.len_bytes,
            info_hash: object.info_hash,
            meta_info_hash: object.meta_info_hash,
        }
    }
}

pub(super) fn encode<T: Serialize>(row: &T) -> Vec<u8> {
    serde_json::to_vec(row).expect("a row has only JSON's own types")
}

pub(super) fn decode<T: DeserializeOwned>(row: &[u8]) -> Option<T> {
    serde_json::from_slice(row).ok()
}
