"""The clouds that `create` knows: what each is called, can do, and wants.

`tests/unit/machine/cloud` compares this table with what SkyPilot says of itself.
"""

from __future__ import annotations

from dataclasses import dataclass

from maestrale.errors import SettingsError


@dataclass(frozen=True)
class Provider:
    """One cloud. `name` is also SkyPilot's; `container`: it runs images, not machines."""

    name: str
    title: str
    container: bool = False
    spot: bool = False
    stops: bool = True
    image: str = ""  # what `--image` names there; empty: it can't start from one
    image_form: str = ""  # what that looks like, as a regular expression
    static: str = ""  # how the address stays; empty: it changes when the machine is stopped
    extra: str = "cloud"  # the extra that brings the cloud's own client
    key: str = ""  # how to give credentials
    snapshot: str = ""  # how to make what `--image` takes
    disks: tuple[int, ...] = ()  # the sizes there are, in GB; empty: any


PROVIDERS = {
    one.name: one
    for one in (
        Provider(
            "paperspace",
            "Paperspace",
            image="a template's id (as t04azgph)",
            image_form=r"t[a-z0-9]{2,}",
            static="a static address is asked for",
            key='make an API key in the console and write {"apiKey": "..."} to '
            "~/.paperspace/config.json",
            snapshot="in the console: the machine, Create template; or POST /v1/custom-templates "
            "with its machineId",
            disks=(100, 250, 500, 1000, 2000),
        ),
        Provider(
            "do",
            "DigitalOcean",
            image="a snapshot's number",
            image_form=r"\d+",
            key="make an API token in the control panel, then: doctl auth init",
            snapshot="doctl compute droplet-action snapshot DROPLET --snapshot-name NAME",
        ),
        Provider(
            "lambda",
            "Lambda",
            stops=False,
            key='make an API key in the console and write "api_key = ..." to '
            "~/.lambda_cloud/lambda_keys",
        ),
        Provider(
            "aws",
            "AWS",
            spot=True,
            image="an AMI's id (ami-...), with --region",
            image_form=r"ami-[0-9a-f]+",
            extra="cloud-aws",
            key="aws configure",
            snapshot="aws ec2 create-image --instance-id ID --name NAME",
        ),
        Provider(
            "gcp",
            "Google Cloud",
            spot=True,
            image="an image's path (projects/PROJECT/global/images/NAME)",
            image_form=r"projects/[^/\s]+/global/(images|machineImages)/(family/)?[^/\s]+",
            extra="cloud-gcp",
            key="gcloud auth application-default login; gcloud config set project PROJECT",
            snapshot="gcloud compute images create NAME --source-disk DISK --source-disk-zone ZONE",
        ),
        Provider(
            "azure",
            "Azure",
            spot=True,
            image="an image's id (a gallery's: /subscriptions/.../images/NAME)",
            image_form=r"/\S+|[^\s:]+(:[^\s:]+){3}",
            extra="cloud-azure",
            key="az login; az account set -s SUBSCRIPTION",
            snapshot="az vm generalize, then az sig image-version create (a gallery's image)",
        ),
        Provider(
            "runpod",
            "RunPod",
            container=True,
            spot=True,
            stops=False,
            key="make an API key in the console, then: runpod config",
        ),
        Provider(
            "kubernetes",
            "Kubernetes",
            container=True,
            stops=False,
            key="a ~/.kube/config whose current context reaches the cluster",
        ),
    )
}

# Machines that Paperspace has and SkyPilot's catalogue lacks, the gist's A5000 among them.
# Prices in dollars an hour, as Paperspace lists them; they only serve to compare.
_PAPERSPACE = (
    ("A4000", 0.76, ("East Coast (NY2)", "West Coast (CA1)", "Europe (AMS1)")),
    ("A5000", 1.38, ("East Coast (NY2)", "West Coast (CA1)")),
    ("A6000", 1.89, ("East Coast (NY2)", "West Coast (CA1)")),
)
CATALOGUE_ROWS: dict[str, list[dict[str, object]]] = {
    "paperspace": [
        {
            "InstanceType": name,
            "AcceleratorName": f"RTX{name}",
            "AcceleratorCount": 1.0,
            "vCPUs": 8.0,
            "MemoryGiB": 45.0,
            "GpuInfo": f"RTX{name}",
            "Region": region,
            "Price": price,
        }
        for name, price, regions in _PAPERSPACE
        for region in regions
    ]
}
# What people call them → SkyPilot's names.
_GPUS = {"A4000": "RTXA4000", "A5000": "RTXA5000", "A6000": "RTXA6000", "4090": "RTX4090"}
_REGIONS = {
    ("paperspace", "ny2"): "East Coast (NY2)",
    ("paperspace", "ca1"): "West Coast (CA1)",
    ("paperspace", "ams1"): "Europe (AMS1)",
}


def find_provider(name: str) -> Provider:
    """The cloud of that name. Raises: SettingsError, naming those there are."""
    aliases = {"digitalocean": "do", "k8s": "kubernetes", "google": "gcp", "amazon": "aws"}
    key = name.strip().lower()
    found = PROVIDERS.get(aliases.get(key, key))
    if found is None:
        raise SettingsError(f"--cloud {name}: not known. There are: {', '.join(PROVIDERS)}.")
    return found


def gpu_name(text: str) -> tuple[str, int]:
    """`A5000` or `A5000:2` → SkyPilot's name and how many. Raises: SettingsError."""
    name, colon, count = text.strip().partition(":")
    plain = name.replace(" ", "").replace("_", "")
    if not plain.replace("-", "").isalnum() or (colon and not count.isdigit()) or count == "0":
        raise SettingsError(
            f"--gpu {text!r}: works are a name and how many, as in A5000 or A100:2."
        )
    return _GPUS.get(plain.upper(), plain), int(count or 1)


def region_name(provider: Provider, text: str) -> str:
    """SkyPilot's name of a region: Paperspace's go by their short names as well."""
    return _REGIONS.get((provider.name, text.strip().lower()), text.strip())
