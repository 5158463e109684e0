//! Contents in inodes, as the kernel has them.

use crate::directory::Entry;
use crate::image::Image;
use crate::inline_data::{self, InlineData};
use crate::inode::{FLAG_INLINE_DATA, FileType, INODE_SIZE, Inode, MAP_SIZE, XATTR_ROOM};
use crate::xattr::{Plan, Xattr};

fn room(inline: &InlineData, others: &[Xattr]) -> [u8; XATTR_ROOM] {
    let set = others.iter().chain([&inline.xattr]).cloned().collect();
    let plan = Plan::new(set, XATTR_ROOM, 4096, false).expect("a plan");
    assert!(!plan.has_block());
    let mut room = [0; XATTR_ROOM];
    plan.put_inode(&mut room, &[]);
    room
}

#[test]
fn the_kernel_writes_the_same_small_files() {
    let image = Image::new("32M", "-b 4096 -I 256 -O inline_data,^metadata_csum_seed");
    let sizes = [1usize, 59, 60, 61, 100, 127, 128, 129];
    image.mounted("for n in 1 59 60 61 100 127 128 129; do printf %0${n}d 7 >f$n; done");
    for size in sizes {
        let inode = image.inode(image.number_of(&format!("/f{size}")));
        let contents = format!("{:0size$}", 7);
        let is_inline =
            u32::from_le_bytes(inode[0x20..0x24].try_into().expect("flags")) & FLAG_INLINE_DATA != 0;
        let Some(inline) = inline_data::file(contents.as_bytes(), &[]) else {
            assert!(!is_inline, "{size}");
            continue;
        };
        assert!(is_inline, "{size}");
        assert_eq!(inline.map, inode[0x28..0x28 + MAP_SIZE], "{size}");
        assert_eq!(inline.size, size as u64);
        assert_eq!(room(&inline, &[]), inode[INODE_SIZE - XATTR_ROOM..], "{size}");
    }
}

#[test]
fn the_kernel_reads_and_changes_small_files_and_directories() {
    let image = Image::new("32M", "-b 4096 -I 256 -O inline_data,^metadata_csum_seed");
    image.mounted("printf x >file; mkdir empty d; mkdir d/sub; touch d/nine_byte d/a_name_of_sixteen d/x");
    let seed = image.seed();
    let replace = |number: u32, mode: u16, links: u16, inline: &InlineData, others: &[Xattr]| {
        let inode = Inode {
            mode,
            links,
            size: inline.size,
            flags: FLAG_INLINE_DATA,
            map: inline.map,
            xattrs: room(inline, others),
            ..Inode::default()
        };
        image.write(image.inode_offset(number), &inode.to_bytes(number, seed));
    };
    let directory = FileType::Directory.mode() | 0o755;

    let other = Xattr::new(b"user.other", b"there")
        .expect("a name")
        .expect("some");
    let others = [other];
    let contents: Vec<u8> = (0..96).map(|index| b'a' + index % 26).collect();
    let inline = inline_data::file(&contents, &others).expect("fits");
    replace(
        image.number_of("/file"),
        FileType::Regular.mode() | 0o644,
        1,
        &inline,
        &others,
    );

    let inline = inline_data::directory(2, &[], &[], XATTR_ROOM).expect("fits");
    replace(image.number_of("/empty"), directory, 2, &inline, &[]);

    let (sub, parent) = (image.number_of("/d/sub"), image.number_of("/d"));
    let regular = |name: &'static str| Entry {
        inode: image.number_of(&format!("/d/{name}")),
        file_type: FileType::Regular,
        name: name.as_bytes(),
    };
    // The fourth is past the map's end.
    let entries = [
        regular("a_name_of_sixteen"),
        Entry::directory(sub, b"sub"),
        regular("x"),
        regular("nine_byte"),
    ];
    let inline = inline_data::directory(2, &entries, &[], XATTR_ROOM).expect("fits");
    assert_eq!(inline.size, 60 + 20);
    replace(parent, directory, 3, &inline, &[]);

    image.assert_clean("with inline data of ours");
    let found = image.mounted(
        "cat file; echo; getfattr --only-values -n user.other file; echo; ls d; ls empty; stat -c %i d/sub/.. d d/nine_byte;
         echo more >>file; echo more >>file; touch empty/x d/y d/z; mv d/x d/renamed; rm d/nine_byte; for n in $(seq 100); do touch d/$n; done",
    );
    let expected = format!(
        "{}\nthere\na_name_of_sixteen\nnine_byte\nsub\nx\n{parent}\n{parent}\n{}\n",
        String::from_utf8_lossy(&contents),
        entries[3].inode
    );
    assert_eq!(found, expected);
    image.assert_clean_after_kernel("after the kernel outgrew inline data");
}
