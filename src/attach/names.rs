//! What our device-mapper and loop devices are called: the store that owns one, what it is, and of which chain or image.
//!
//! Refuses to ask the kernel. Invariant: two stores never have a name in common, and a name that we read is one that we would write.

use crate::ids::{ChainId, Digest, ImageId, StoreId};
use std::fmt;

/// A device-mapper device of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DeviceId {
    /// Zeros, below a snapshot that has no other origin.
    Zero(ChainId),
    /// Metadata and deltas, one after the other: the COW device of `Short`.
    Cow(ChainId),
    /// The short runs of a flat chain, by one snapshot.
    Short(ChainId),
    /// A whole chain, by one table.
    Lower(ChainId),
    /// A chain's newest delta over those below it.
    Level(ChainId),
    /// What is below a level that is larger than it.
    Pad(ChainId),
    /// What an image's head lies over.
    Origin(ImageId),
    /// What is mounted.
    Image(ImageId),
}

/// A loop device of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LoopId {
    Delta(Digest),
    Head(ImageId),
    /// The synthesised metadata of a flat chain's short runs.
    Meta(ChainId),
    /// User mode's, over the FUSE file.
    User(ImageId),
}

impl DeviceId {
    fn kind(self) -> &'static str {
        match self {
            DeviceId::Zero(_) => "zero",
            DeviceId::Cow(_) => "cow",
            DeviceId::Short(_) => "short",
            DeviceId::Lower(_) => "lower",
            DeviceId::Level(_) => "level",
            DeviceId::Pad(_) => "pad",
            DeviceId::Origin(_) => "origin",
            DeviceId::Image(_) => "image",
        }
    }

    /// `<store>-<kind>-<id>`
    fn tail(self, store: StoreId) -> String {
        let kind = self.kind();
        match self {
            DeviceId::Origin(id) | DeviceId::Image(id) => format!("{store}-{kind}-{id}"),
            DeviceId::Zero(id)
            | DeviceId::Cow(id)
            | DeviceId::Short(id)
            | DeviceId::Lower(id)
            | DeviceId::Level(id)
            | DeviceId::Pad(id) => format!("{store}-{kind}-{id}"),
        }
    }

    pub fn name(self, store: StoreId) -> String {
        format!("blockbt-{}", self.tail(store))
    }

    /// What says whose it is: a name can be taken by anybody.
    pub fn uuid(self, store: StoreId) -> String {
        format!("BLOCKBT-{}", self.tail(store))
    }

    /// The device of `store` that has this UUID.
    pub fn of_uuid(uuid: &str, store: StoreId) -> Option<DeviceId> {
        let (kind, id) = uuid.strip_prefix(&format!("BLOCKBT-{store}-"))?.split_once('-')?;
        let chain = || id.parse::<ChainId>().ok();
        let image = || id.parse::<ImageId>().ok();
        let found = match kind {
            "zero" => DeviceId::Zero(chain()?),
            "cow" => DeviceId::Cow(chain()?),
            "short" => DeviceId::Short(chain()?),
            "lower" => DeviceId::Lower(chain()?),
            "level" => DeviceId::Level(chain()?),
            "pad" => DeviceId::Pad(chain()?),
            "origin" => DeviceId::Origin(image()?),
            "image" => DeviceId::Image(image()?),
            _ => return None,
        };
        (found.uuid(store) == uuid).then_some(found)
    }

    /// Whether several images may stand on it.
    pub fn is_shared(self) -> bool {
        !matches!(self, DeviceId::Origin(_) | DeviceId::Image(_))
    }
}

impl fmt::Display for DeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DeviceId::Origin(id) | DeviceId::Image(id) => write!(f, "{}-{id}", self.kind()),
            DeviceId::Zero(id)
            | DeviceId::Cow(id)
            | DeviceId::Short(id)
            | DeviceId::Lower(id)
            | DeviceId::Level(id)
            | DeviceId::Pad(id) => write!(f, "{}-{id}", self.kind()),
        }
    }
}

impl LoopId {
    /// At most 63 characters, which is what fits.
    pub fn name(self, store: StoreId) -> String {
        match self {
            LoopId::Delta(digest) => format!("{}{}", delta_prefix(store), hex::encode(&digest.0[..16])),
            LoopId::Head(image) => format!("{}{image}", head_prefix(store)),
            LoopId::Meta(chain) => format!("{}{chain}", meta_prefix(store)),
            LoopId::User(image) => format!("{}{image}", user_prefix(store)),
        }
    }

    /// The image whose loop in user mode has this name.
    pub fn user_image(name: &str, store: StoreId) -> Option<ImageId> {
        name.strip_prefix(&user_prefix(store))?.parse().ok()
    }

    /// The image whose head's loop has this name.
    pub fn head_image(name: &str, store: StoreId) -> Option<ImageId> {
        name.strip_prefix(&head_prefix(store))?.parse().ok()
    }

    /// Whether this is the name of a loop that several images of `store` may use.
    pub fn is_shared(name: &str, store: StoreId) -> bool {
        name.starts_with(&delta_prefix(store)) || name.starts_with(&meta_prefix(store))
    }
}

impl fmt::Display for LoopId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LoopId::Delta(digest) => write!(f, "loop of delta {digest}"),
            LoopId::Head(_) => f.write_str("loop of the head"),
            LoopId::Meta(_) => f.write_str("loop of the metadata"),
            LoopId::User(_) => f.write_str("loop of the FUSE file"),
        }
    }
}

fn delta_prefix(store: StoreId) -> String {
    format!("blockbt-{store}-delta-")
}

fn head_prefix(store: StoreId) -> String {
    format!("blockbt-{store}-head-")
}

fn meta_prefix(store: StoreId) -> String {
    format!("blockbt-{store}-meta-")
}

fn user_prefix(store: StoreId) -> String {
    format!("blockbt-{store}-user-")
}

#[cfg(test)]
mod tests {
    use super::*;

    const STORE: StoreId = StoreId([0x11; 8]);
    const CHAIN: ChainId = ChainId([0xab; 16]);
    const IMAGE: ImageId = ImageId([0xcd; 16]);

    fn all() -> [DeviceId; 8] {
        use DeviceId::*;
        [
            Zero(CHAIN),
            Cow(CHAIN),
            Short(CHAIN),
            Lower(CHAIN),
            Level(CHAIN),
            Pad(CHAIN),
            Origin(IMAGE),
            Image(IMAGE),
        ]
    }

    #[test]
    fn a_uuid_leads_back_to_its_device_and_only_in_its_store() {
        for device in all() {
            assert_eq!(DeviceId::of_uuid(&device.uuid(STORE), STORE), Some(device));
            assert_eq!(DeviceId::of_uuid(&device.uuid(STORE), StoreId([0x12; 8])), None);
            assert!(device.name(STORE).len() < 128 && device.uuid(STORE).len() < 129);
        }
        let lower = DeviceId::Lower(CHAIN).uuid(STORE);
        assert_eq!(lower, "BLOCKBT-1111111111111111-lower-abababababababababababababababab");
        for bad in [
            "",
            "BLOCKBT-1111111111111111-lower-",
            &lower[1..],
            &format!("{lower}0"),
            &lower.to_lowercase(),
            &lower.replace("abab", "ABAB"),
        ] {
            assert_eq!(DeviceId::of_uuid(bad, STORE), None, "{bad}");
        }
    }

    #[test]
    fn loop_names_fit_and_say_what_they_are() {
        let delta = LoopId::Delta(Digest([0xef; 32])).name(STORE);
        assert_eq!(delta, format!("blockbt-1111111111111111-delta-{}", "ef".repeat(16)));
        for id in [
            LoopId::Delta(Digest::NONE),
            LoopId::Head(IMAGE),
            LoopId::Meta(CHAIN),
            LoopId::User(IMAGE),
        ] {
            let name = id.name(STORE);
            assert!(name.len() <= 63, "{name}");
            assert_eq!(
                LoopId::is_shared(&name, STORE),
                matches!(id, LoopId::Delta(_) | LoopId::Meta(_)),
                "{name}"
            );
            assert!(!LoopId::is_shared(&name, StoreId([0x12; 8])));
            assert_eq!(LoopId::user_image(&name, STORE).is_some(), matches!(id, LoopId::User(_)));
        }
    }

    #[test]
    fn a_chain_s_id_depends_on_each_delta_and_their_order() {
        let (a, b) = (Digest([1; 32]), Digest([2; 32]));
        let ids = [ChainId::of(&[]), ChainId::of(&[a]), ChainId::of(&[a, b]), ChainId::of(&[b, a])];
        assert!(ids.iter().enumerate().all(|(at, id)| !ids[..at].contains(id)));
    }
}
