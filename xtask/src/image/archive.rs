//! An image as a tar archive that `ctr images import`, `docker load`, `podman load` and `skopeo copy` read.
//!
//! The archive is an OCI image layout with Docker's manifest beside it. Equal input gives equal bytes; the machine has
//! no influence.

use std::io::{Result, Write};

use flate2::{Compression, GzBuilder};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// Contents of an image.
pub(crate) struct Image<'a> {
    /// As manifests of Kubernetes name it, without the tag.
    pub(crate) name: &'a str,
    /// The tag.
    pub(crate) version: &'a str,
    /// As OCI names it.
    pub(crate) architecture: &'a str,
    /// Time of the sources, as RFC 3339 has it.
    pub(crate) created: &'a str,
    /// `org.opencontainers.image.*`, and their values.
    pub(crate) labels: &'a [(&'a str, &'a str)],
    /// The program: the one file of the image, and its entry point.
    pub(crate) program: (&'a str, &'a [u8]),
    /// Arguments of the program unless a container gives its own.
    pub(crate) arguments: &'a [&'a str],
}

/// An image in its archive.
pub(crate) struct Archive {
    /// The archive.
    pub(crate) bytes: Vec<u8>,
    /// The name by which registries and runtimes know the image: the digest of its manifest.
    pub(crate) digest: String,
    /// Size of the layer, which is what a node pulls.
    pub(crate) layer: usize,
}

const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// Writes an image into an archive in memory.
pub(crate) fn write(image: &Image) -> Result<Archive> {
    let (program, binary) = image.program;
    let layer_tar = tar(&[(program, 0o755, binary)])?;
    // A gzip header without name and time; the level changes little, and this is done once.
    let mut gzip = GzBuilder::new().write(Vec::new(), Compression::best());
    gzip.write_all(&layer_tar)?;
    let layer = Blob::new(LAYER, gzip.finish()?);
    let config = Blob::json(CONFIG, &config(image, &digest(&layer_tar)));
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": config.descriptor(),
        "layers": [layer.descriptor()],
    });
    let manifest = Blob::json(MANIFEST, &manifest);

    let reference = format!("{}:{}", image.name, image.version);
    let mut described = manifest.descriptor();
    described["platform"] = json!({"architecture": image.architecture, "os": "linux"});
    described["annotations"] = json!({
        // containerd reads the first, other runtimes the second.
        "io.containerd.image.name": full_name(&reference),
        "org.opencontainers.image.ref.name": image.version,
    });
    let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [described]});
    let layout = json!({"imageLayoutVersion": "1.0.0"});
    let docker = json!([{"Config": config.path(), "RepoTags": [reference], "Layers": [layer.path()]}]);

    let (index, layout, docker) = (index.to_string(), layout.to_string(), docker.to_string());
    let mut files = vec![("oci-layout".to_owned(), layout.as_bytes()), ("index.json".to_owned(), index.as_bytes())];
    files.push(("manifest.json".to_owned(), docker.as_bytes()));
    files.extend([&manifest, &config, &layer].map(|blob| (blob.path(), blob.bytes.as_slice())));
    let files: Vec<_> = files.iter().map(|(path, bytes)| (path.as_str(), 0o644, *bytes)).collect();
    Ok(Archive { bytes: tar(&files)?, digest: manifest.digest, layer: layer.bytes.len() })
}

fn config(image: &Image, diff_id: &str) -> Value {
    let labels: serde_json::Map<_, _> =
        image.labels.iter().map(|(name, value)| (format!("org.opencontainers.image.{name}"), json!(value))).collect();
    json!({
        "created": image.created,
        "architecture": image.architecture,
        "os": "linux",
        "config": {
            "Entrypoint": [format!("/{}", image.program.0)],
            "Cmd": image.arguments,
            // `kubectl exec` finds the program by its name.
            "Env": ["PATH=/"],
            "Labels": labels,
        },
        "rootfs": {"type": "layers", "diff_ids": [diff_id]},
        "history": [{"created": image.created, "created_by": "cargo xtask image"}],
    })
}

/// A part of the image, named by its digest.
struct Blob {
    media_type: &'static str,
    digest: String,
    bytes: Vec<u8>,
}

impl Blob {
    fn new(media_type: &'static str, bytes: Vec<u8>) -> Self {
        Self { media_type, digest: digest(&bytes), bytes }
    }

    fn json(media_type: &'static str, value: &Value) -> Self {
        Self::new(media_type, value.to_string().into_bytes())
    }

    fn descriptor(&self) -> Value {
        json!({"mediaType": self.media_type, "digest": self.digest, "size": self.bytes.len()})
    }

    fn path(&self) -> String {
        format!("blobs/{}", self.digest.replace(':', "/"))
    }
}

fn digest(bytes: &[u8]) -> String {
    let hex: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

/// Files of root, in the order given, without a time: a layer is the same as long as the program is.
fn tar(files: &[(&str, u32, &[u8])]) -> Result<Vec<u8>> {
    let mut tar = tar::Builder::new(Vec::new());
    for (path, mode, bytes) in files {
        let mut header = tar::Header::new_ustar();
        header.set_mode(*mode);
        header.set_size(bytes.len() as u64);
        header.set_mtime(0);
        header.set_uid(0);
        header.set_gid(0);
        tar.append_data(&mut header, path, *bytes)?;
    }
    tar.into_inner()
}

/// A name without a registry is one of Docker's library; runtimes know images by their whole names.
fn full_name(name: &str) -> String {
    match name.split_once('/') {
        None => format!("docker.io/library/{name}"),
        Some((first, _)) if first.contains(['.', ':']) || first == "localhost" => name.to_owned(),
        Some(_) => format!("docker.io/{name}"),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::io::Read;

    use flate2::read::GzDecoder;

    use super::*;

    const IMAGE: Image = Image {
        name: "beeline",
        version: "1.2.3",
        architecture: "arm64",
        created: "2001-02-03T04:05:06Z",
        labels: &[("title", "A"), ("revision", "abc")],
        program: ("beeline", b"\x7fELF and so on"),
        arguments: &[],
    };

    /// The files of an archive, with their modes.
    fn files(tar: &[u8]) -> BTreeMap<String, (u32, Vec<u8>)> {
        let mut archive = tar::Archive::new(tar);
        let mut files = BTreeMap::new();
        for entry in archive.entries().unwrap() {
            let mut entry = entry.unwrap();
            let header = entry.header();
            assert_eq!((header.mtime().unwrap(), header.uid().unwrap(), header.gid().unwrap()), (0, 0, 0));
            let (path, mode) = (entry.path().unwrap().display().to_string(), header.mode().unwrap());
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes).unwrap();
            assert!(files.insert(path, (mode, bytes)).is_none());
        }
        files
    }

    /// Takes out the blob that a descriptor names, and checks it against the descriptor.
    fn take(files: &mut BTreeMap<String, (u32, Vec<u8>)>, descriptor: &Value) -> Vec<u8> {
        let named = descriptor["digest"].as_str().unwrap();
        let (mode, bytes) = files.remove(&format!("blobs/{}", named.replace(':', "/"))).unwrap();
        assert_eq!((mode, digest(&bytes).as_str(), json!(bytes.len())), (0o644, named, descriptor["size"].clone()));
        bytes
    }

    fn json_of(bytes: &[u8]) -> Value {
        serde_json::from_slice(bytes).unwrap()
    }

    #[test]
    fn an_archive_says_what_it_has_and_has_what_it_says() {
        let archive = write(&IMAGE).unwrap();
        let mut files = files(&archive.bytes);
        let layout = files.remove("oci-layout").unwrap().1;
        assert_eq!(json_of(&layout), json!({"imageLayoutVersion": "1.0.0"}));
        let index = json_of(&files.remove("index.json").unwrap().1);
        let docker = json_of(&files.remove("manifest.json").unwrap().1);

        let described = &index["manifests"][0];
        assert_eq!(described["digest"], archive.digest.as_str());
        assert_eq!(described["platform"], json!({"architecture": "arm64", "os": "linux"}));
        assert_eq!(described["annotations"]["io.containerd.image.name"], "docker.io/library/beeline:1.2.3");
        let manifest = json_of(&take(&mut files, described));
        assert_eq!(manifest["layers"].as_array().unwrap().len(), 1);
        let config = json_of(&take(&mut files, &manifest["config"]));
        let layer = take(&mut files, &manifest["layers"][0]);
        assert_eq!(layer.len(), archive.layer);
        assert!(files.is_empty(), "{:?}", files.keys());

        let path = |part: &Value| format!("blobs/{}", part["digest"].as_str().unwrap().replace(':', "/"));
        let (config_path, layer_path) = (path(&manifest["config"]), path(&manifest["layers"][0]));
        let expected = json!([{"Config": config_path, "RepoTags": ["beeline:1.2.3"], "Layers": [layer_path]}]);
        assert_eq!(docker, expected);

        assert_eq!(config["architecture"], "arm64");
        assert_eq!(config["created"], IMAGE.created);
        assert_eq!(config["config"]["Entrypoint"], json!(["/beeline"]));
        assert_eq!(config["config"]["Labels"]["org.opencontainers.image.revision"], "abc");
        let mut layer_tar = Vec::new();
        GzDecoder::new(layer.as_slice()).read_to_end(&mut layer_tar).unwrap();
        assert_eq!(config["rootfs"]["diff_ids"], json!([digest(&layer_tar)]));
        let mut only = self::files(&layer_tar);
        assert_eq!(only.remove("beeline"), Some((0o755, IMAGE.program.1.to_vec())));
        assert!(only.is_empty(), "{:?}", only.keys());
    }

    #[test]
    fn writing_twice_gives_the_same_bytes() {
        assert_eq!(write(&IMAGE).unwrap().bytes, write(&IMAGE).unwrap().bytes);
    }

    #[test]
    fn the_layer_depends_on_nothing_but_the_program() {
        let layer = |image: &Image| {
            let files = files(&write(image).unwrap().bytes);
            let config = json_of(&files[json_of(&files["manifest.json"].1)[0]["Config"].as_str().unwrap()].1);
            config["rootfs"]["diff_ids"][0].clone()
        };
        let later = Image { version: "1.2.4", created: "2002-02-03T04:05:06Z", labels: &[], ..IMAGE };
        assert_eq!(layer(&IMAGE), layer(&later));
        assert_ne!(layer(&IMAGE), layer(&Image { program: ("beeline", b"another"), ..IMAGE }));
    }

    #[test]
    fn names_are_completed_as_runtimes_do() {
        assert_eq!(full_name("beeline:1"), "docker.io/library/beeline:1");
        assert_eq!(full_name("me/beeline:1"), "docker.io/me/beeline:1");
        assert_eq!(full_name("registry.example.com/me/beeline:1"), "registry.example.com/me/beeline:1");
        assert_eq!(full_name("localhost/beeline:1"), "localhost/beeline:1");
    }
}
