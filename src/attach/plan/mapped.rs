//! The steps of the kernel modes.
//!
//! Invariant: a device is made after all that it stands on, and removed before; a device that images share is made only where it is not there.

use super::Step;
use crate::attach::names::{DeviceId, LoopId};
use crate::attach::seen::MappedSeen;
use crate::ids::{ChainId, Digest, ImageId};
use std::path::Path;

/// What is wanted of an attach, and what there is for it.
#[derive(Debug, Clone)]
pub struct Wanted<'a> {
    pub image: ImageId,
    pub read_only: bool,
    pub has_head: bool,
    /// Directory and file system, for a mount.
    pub mount: Option<(&'a Path, &'a str)>,
    /// What to make of the devices that images share.
    pub below: Vec<Step>,
}

/// From nothing of the image's own to a device, and perhaps a mount. Whoever does it has the store's devices locked, until the image has one of
/// its own on what is shared: what takes longer is behind that.
pub fn attach(wanted: &Wanted) -> Vec<Step> {
    let read_only = wanted.read_only;
    let mut steps = vec![Step::WriteState {
        read_only,
        mount: wanted.mount.map(|(dir, _)| dir.into()),
    }];
    steps.extend_from_slice(&wanted.below);
    let image = Step::MakeDevice {
        device: DeviceId::Image(wanted.image),
        read_only,
    };
    if wanted.has_head || !read_only {
        // Read-only whatever is above: a snapshot only reads its origin.
        let device = DeviceId::Origin(wanted.image);
        steps.extend([Step::MakeDevice { device, read_only: true }, Step::UnlockDevices]);
        if !wanted.has_head {
            steps.push(Step::MakeHead);
        }
        steps.extend([Step::AttachHead { read_only }, image]);
    } else {
        steps.extend([image, Step::UnlockDevices]);
    }
    if let Some((dir, file_system)) = wanted.mount {
        steps.push(Step::Mount {
            dir: dir.into(),
            file_system: file_system.into(),
            read_only,
        });
    }
    steps
}

/// A chain's one table, and what it needs: `used` are the deltas that it names, `looped` whether one has its loop already.
pub fn flat(chain: ChainId, used: &[Digest], looped: impl Fn(&Digest) -> bool, has_short: bool) -> Vec<Step> {
    let mut steps = loops(used, looped);
    let make = |device| Step::MakeDevice { device, read_only: true };
    if has_short {
        steps.push(Step::AttachLoop { id: LoopId::Meta(chain) });
        steps.extend([DeviceId::Zero(chain), DeviceId::Cow(chain), DeviceId::Short(chain)].map(make));
    }
    steps.push(make(DeviceId::Lower(chain)));
    steps
}

/// One level of a stack to make: the chain up to it, its delta, and whether it is larger than the one below.
#[derive(Debug, Clone, Copy)]
pub struct Level {
    pub chain: ChainId,
    pub digest: Digest,
    pub is_padded: bool,
}

/// The levels of a stack that are not there, of which the first may be the lowest of all.
pub fn stack(levels: &[Level], with_lowest: bool, looped: impl Fn(&Digest) -> bool) -> Vec<Step> {
    let digests: Vec<Digest> = levels.iter().map(|level| level.digest).collect();
    let mut steps = loops(&digests, looped);
    let make = |device| Step::MakeDevice { device, read_only: true };
    for (index, level) in levels.iter().enumerate() {
        if index == 0 && with_lowest {
            steps.push(make(DeviceId::Zero(level.chain)));
        } else if level.is_padded {
            steps.push(make(DeviceId::Pad(level.chain)));
        }
        steps.push(make(DeviceId::Level(level.chain)));
    }
    steps
}

fn loops(digests: &[Digest], looped: impl Fn(&Digest) -> bool) -> Vec<Step> {
    let missing = digests.iter().filter(|digest| !looped(digest));
    missing
        .map(|digest| Step::AttachLoop {
            id: LoopId::Delta(*digest),
        })
        .collect()
}

/// From whatever there is of the image to nothing; what it stood on is for [`below::release`](crate::attach::below::release).
pub fn take_away(seen: &MappedSeen) -> Vec<Step> {
    let mut steps: Vec<Step> = seen
        .mounts
        .iter()
        .rev()
        .map(|dir| Step::Unmount {
            dir: dir.clone(),
            dead: false,
        })
        .collect();
    if let Some(image) = &seen.image {
        if !image.read_only && !seen.heads.is_empty() {
            // Its last close writes what the kernel held back. The loop makes that durable, also where the snapshot takes no more writes.
            steps.push(Step::AwaitUnused {
                device: DeviceId::Image(seen.id),
            });
            steps.extend(seen.heads.iter().map(|(number, _)| Step::Flush { number: *number }));
        }
        steps.push(Step::RemoveDevice {
            device: DeviceId::Image(seen.id),
        });
    }
    if seen.has_origin {
        steps.push(Step::RemoveDevice {
            device: DeviceId::Origin(seen.id),
        });
    }
    steps.extend(seen.heads.iter().map(|(number, name)| Step::FreeLoop {
        number: *number,
        name: name.clone(),
    }));
    steps
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attach::seen::ImageSeen;

    const IMAGE: ImageId = ImageId([3; 16]);
    const CHAIN: ChainId = ChainId([4; 16]);

    fn digest(byte: u8) -> Digest {
        Digest([byte; 32])
    }

    fn make(device: DeviceId, read_only: bool) -> Step {
        Step::MakeDevice { device, read_only }
    }

    fn delta(byte: u8) -> Step {
        Step::AttachLoop {
            id: LoopId::Delta(digest(byte)),
        }
    }

    fn clone_of_an_attached_chain<'a>() -> Wanted<'a> {
        Wanted {
            image: IMAGE,
            read_only: false,
            has_head: true,
            mount: None,
            below: Vec::new(),
        }
    }

    #[test]
    fn a_clone_of_an_attached_chain_adds_a_head_and_its_origin() {
        assert_eq!(
            attach(&clone_of_an_attached_chain()),
            [
                Step::WriteState {
                    read_only: false,
                    mount: None
                },
                make(DeviceId::Origin(IMAGE), true),
                Step::UnlockDevices,
                Step::AttachHead { read_only: false },
                make(DeviceId::Image(IMAGE), false),
            ]
        );
    }

    #[test]
    fn what_is_only_read_and_has_no_head_is_the_chain_itself() {
        let wanted = Wanted {
            read_only: true,
            has_head: false,
            mount: Some((Path::new("/mnt"), "ext4")),
            ..clone_of_an_attached_chain()
        };
        let steps = attach(&wanted);
        assert_eq!(steps[1], make(DeviceId::Image(IMAGE), true));
        assert!(matches!(steps[3], Step::Mount { read_only: true, .. }) && steps.len() == 4);
        let head = Wanted { has_head: true, ..wanted };
        assert!(attach(&head).contains(&Step::AttachHead { read_only: true }));
    }

    #[test]
    fn a_first_write_makes_a_head_before_anything_stands_on_it() {
        let wanted = Wanted {
            has_head: false,
            ..clone_of_an_attached_chain()
        };
        assert_eq!(attach(&wanted)[3..5], [Step::MakeHead, Step::AttachHead { read_only: false }]);
    }

    #[test]
    fn a_flat_chain_loops_each_delta_once_and_makes_the_short_device_only_where_it_is_needed() {
        let used = [digest(1), digest(2), digest(3)];
        let looped = |found: &Digest| *found == digest(2);
        assert_eq!(
            flat(CHAIN, &used, looped, false),
            [delta(1), delta(3), make(DeviceId::Lower(CHAIN), true)]
        );
        assert_eq!(
            flat(CHAIN, &used[1..2], looped, true),
            [
                Step::AttachLoop { id: LoopId::Meta(CHAIN) },
                make(DeviceId::Zero(CHAIN), true),
                make(DeviceId::Cow(CHAIN), true),
                make(DeviceId::Short(CHAIN), true),
                make(DeviceId::Lower(CHAIN), true),
            ]
        );
    }

    #[test]
    fn a_stack_starts_from_zeros_or_from_the_level_that_is_there() {
        let level = |byte: u8, is_padded| Level {
            chain: ChainId([byte; 16]),
            digest: digest(byte),
            is_padded,
        };
        let levels = [level(1, false), level(2, true)];
        assert_eq!(
            stack(&levels, true, |_| false),
            [
                delta(1),
                delta(2),
                make(DeviceId::Zero(levels[0].chain), true),
                make(DeviceId::Level(levels[0].chain), true),
                make(DeviceId::Pad(levels[1].chain), true),
                make(DeviceId::Level(levels[1].chain), true),
            ]
        );
        assert_eq!(
            stack(&levels[1..], false, |_| true),
            [
                make(DeviceId::Pad(levels[1].chain), true),
                make(DeviceId::Level(levels[1].chain), true)
            ]
        );
    }

    #[test]
    fn what_is_there_goes_from_the_top() {
        let mut seen = MappedSeen {
            id: IMAGE,
            image: Some(ImageSeen {
                read_only: false,
                ..ImageSeen::default()
            }),
            has_origin: true,
            heads: vec![(5, "head".into())],
            mounts: vec!["/a".into(), "/b".into()],
            ..MappedSeen::of(IMAGE)
        };
        let (image, origin) = (DeviceId::Image(IMAGE), DeviceId::Origin(IMAGE));
        let unmount = |dir: &str| Step::Unmount {
            dir: dir.into(),
            dead: false,
        };
        let rest = [
            Step::RemoveDevice { device: image },
            Step::RemoveDevice { device: origin },
            Step::FreeLoop {
                number: 5,
                name: "head".into(),
            },
        ];
        let mut want = vec![
            unmount("/b"),
            unmount("/a"),
            Step::AwaitUnused { device: image },
            Step::Flush { number: 5 },
        ];
        want.extend_from_slice(&rest);
        assert_eq!(take_away(&seen), want);
        seen.image.as_mut().unwrap().read_only = true;
        assert_eq!(take_away(&seen)[2..], rest);
        seen.image = None;
        seen.mounts.clear();
        assert_eq!(take_away(&seen), rest[1..]);
        assert_eq!(take_away(&MappedSeen::of(IMAGE)), []);
    }
}
