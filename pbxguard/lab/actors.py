"""Configuration files of the lab's actors, from the topology. Writes files; starts nothing."""

import json
import os
import secrets
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template
from types import MappingProxyType

import numpy as np

from pbxguard import prompts
from pbxguard.config import Settings
from pbxguard.errors import BadConfig
from pbxguard.lab import heard, topology
from pbxguard.lab.goip.dialling import CHARACTERS
from pbxguard.lab.goip.plan import GatewayPlan, account_names
from pbxguard.lab.goip.profiles import CallerId
from pbxguard.lab.goip.sims import numbers as sim_numbers
from pbxguard.lab.topology import GROUPS, HOME, MOBILE, PHONES, Caller, Group, Phone, Topology, members
from pbxguard.resources import DIALPLANS

#: Seconds that an answered softphone stays in a call after its marker.
CALLEE_SILENCE = 300

_ETC = Path(__file__).parent / "etc"


class _Asterisk(Template):
    # Asterisk's own files are full of "$" and "{}".
    delimiter = "%%"


@dataclass(frozen=True, slots=True)
class Secrets:
    """Passwords of one lab, kept over ``lab up`` so that an engineer's telephone stays registered."""

    ami: str
    goip: str
    phones: dict[str, str]

    @classmethod
    def load(cls, path: Path) -> "Secrets":
        """Read the passwords of *path*, made on first use; readable by the owner only.

        Raises:
            BadConfig: The file is damaged.
        """
        known = cls._read(path) if path.is_file() else {}
        wanted = ["ami", "goip", *(phone.number for phone in PHONES)]
        missing = [name for name in wanted if name not in known]
        if missing:
            known |= {name: secrets.token_hex(6) for name in missing}
            path.parent.mkdir(parents=True, exist_ok=True)
            new = path.with_suffix(".new")
            new.touch(mode=0o600)
            new.write_text(json.dumps(known, indent=1))
            new.replace(path)
        return cls(known["ami"], known["goip"], {p.number: known[p.number] for p in PHONES})

    @staticmethod
    def _read(path: Path) -> dict[str, str]:
        try:
            known = json.loads(path.read_bytes())
        except (ValueError, RecursionError):
            known = None
        # They go into configuration files, where a line end would begin a setting.
        if not isinstance(known, dict) or not all(
            isinstance(word, str) and word.isascii() and word.isalnum() for word in known.values()
        ):
            raise BadConfig(f"{path}: damaged; remove it, and the lab makes new passwords")
        return known


def write(
    root: Path,
    passwords: Secrets,
    settings: Settings,
    guard: tuple[str, int],
    listen: str | None,
    pbx: str = "asterisk",
    net: Topology = HOME,
    gateways: Mapping[str, GatewayPlan] = MappingProxyType({}),
) -> dict[str, Path]:
    """Write the folders of all actors under *root* and return them by actor name.

    Args:
        root: The lab's folder; ``markers`` and ``captures`` are made beside the actors' folders.
        passwords: Of SIP accounts and AMI.
        settings: For the trunks' failure policy and the site's prompts.
        guard: Address and port of the guard, as the PBX reaches it.
        listen: Address of the host on which SIP and RTP are published, or None.
        pbx: ``asterisk`` or ``freeswitch``.
        net: The world that the actors are in.
        gateways: Settings of GOIP gateways by name, where they are not the topology's.
    """
    markers = root / "markers"
    markers.mkdir(parents=True, exist_ok=True)
    heard.write_wav(markers / "caller.wav", heard.marker("caller"))
    # baresip hangs up at the end of its file, so the callee goes on with silence.
    silence = np.zeros(CALLEE_SILENCE * heard.RATE, np.int16)
    heard.write_wav(markers / "answering.wav", heard.marker("callee"))
    heard.write_wav(markers / "callee.wav", np.concatenate([heard.marker("callee"), silence]))
    _mirror(prompts.prompt_dir(settings.prompts), root / "prompts", "*/*.wav")
    _mirror(DIALPLANS / "asterisk", root / "dialplan", "*.conf")
    _mirror(DIALPLANS / "freeswitch", root / "dialplan", "*.xml")
    (root / "captures").mkdir(exist_ok=True)
    # tcpdump in the container gives up root, and Asterisk runs as its own user there.
    os.chmod(root / "captures", 0o777)  # noqa: PTH101, S103

    if pbx == "freeswitch":
        folders = {"pbx": _freeswitch(root / "pbx", passwords, settings, net)}
    else:
        folders = {"pbx": _pbx(root / "pbx", passwords, settings, guard, listen, net)}
    for caller in net.callers:
        if caller.gateway is None:
            folders[caller.name] = _caller(root / caller.name, caller, passwords, net)
        else:
            plan = gateways.get(caller.name, caller.gateway)
            folders[caller.name] = gateway(root / caller.name, caller, plan, passwords, net)
    for name, phones in net.telephones().items():
        folders[name] = _telephones(root / name, phones, passwords, net)
    return folders


def _mirror(source: Path, target: Path, pattern: str) -> None:
    """Make *target* hold the files of *source*; in place, because running containers have it mounted."""
    wanted = {path.relative_to(source) for path in source.glob(pattern)}
    for name in wanted:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        content = (source / name).read_bytes()
        if not (target / name).is_file() or (target / name).read_bytes() != content:
            (target / name).write_bytes(content)
    for path in target.glob(pattern):
        if path.relative_to(target) not in wanted:
            path.unlink()


def render(folder: Path, kinds: tuple[str, ...], values: dict[str, str]) -> Path:
    """Fill the files of *kinds* in, the later over the earlier and over what is common; of no other kind is left."""
    folder.mkdir(parents=True, exist_ok=True)
    sources = {source.name: source for kind in ("common", *kinds) for source in (_ETC / kind).iterdir()}
    for name, source in sources.items():
        text = _Asterisk(source.read_text(encoding="utf-8")).substitute(values)
        (folder / name).write_text(text, encoding="utf-8")
    for path in folder.iterdir():
        if path.name not in sources:
            path.unlink()
    return folder


def _pbx(
    folder: Path, passwords: Secrets, settings: Settings, guard: tuple[str, int], listen: str | None, net: Topology
) -> Path:
    first, last = topology.RTP_PORTS_LISTEN if listen else topology.RTP_PORTS
    nat = ""
    if listen:
        nat = (
            f"external_media_address = {listen}\nexternal_signaling_address = {listen}\n"
            # Asterisk replaces only what is local in its SDP, so its own published network counts as local too.
            + "\n".join(f"local_net = {local}" for local in (net.carrier, net.access, net.listen))
        )
    return render(
        folder,
        ("pbx",),
        {
            "rtp_first": str(first),
            "rtp_last": str(last),
            "ami": "no",
            "answering": topology.ANSWERING,
            "secret": passwords.ami,
            "nat": nat,
            "guard": f"{guard[0]}:{guard[1]}",
            "trunks": "\n".join(_trunk_endpoint(caller, passwords) for caller in net.trunks),
            "phones": "\n".join(_phone_endpoint(phone, passwords) for phone in net.phones),
            "groups": "\n".join(
                f"exten => {group.number},1,Gosub(ring,s,1({'&PJSIP/'.join(members(group.number))}))"
                for group in GROUPS
            ),
            "contexts": "\n".join(_trunk_context(caller, settings) for caller in net.trunks),
            "host": str(net.guard_address),
            "texts": "\n".join(
                f"exten => {phone.number},1,Gosub(text-tagged,s,1)\n same => n,MessageSend(pjsip:{phone.number})"
                for phone in net.phones
            ),
        },
    )


_SOFIA = (
    ("dialplan", "XML"),
    ("inbound-codec-prefs", "PCMA,PCMU"),
    ("outbound-codec-prefs", "PCMA,PCMU"),
    # Else a prompt in early media never ends when the caller sends no RTP.
    ("rtp-timer-name", "soft"),
    ("auth-calls", "true"),
    ("force-register-domain", "lab"),
    ("force-register-db-domain", "lab"),
    ("force-subscription-domain", "lab"),
    ("manage-presence", "false"),
    # The contact of a telephone that was restarted on another port must not ring: the newest counts.
    ("multiple-registrations", "false"),
    ("enable-3pcc", "proxy"),
    ("apply-nat-acl", "none"),
    ("NDLB-force-rport", "true"),
    ("caller-id-type", "none"),
)


def _freeswitch(folder: Path, passwords: Secrets, settings: Settings, net: Topology) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    first, last = topology.RTP_PORTS
    known = [caller for caller in net.trunks if not caller.registers_at]
    registering = [account for caller in net.trunks if caller.registers_at for account in account_names(caller.name)]
    users = [(phone.number, passwords.phones[phone.number], "from-subscriber") for phone in net.phones]
    users += [(account, passwords.goip, "carrier") for account in registering]
    values = {
        "rtp_first": str(first),
        "rtp_last": str(last),
        "answering": topology.ANSWERING,
        "secret": passwords.ami,
        "carrier_address": str(net.pbx_carrier),
        "access_address": str(net.pbx_access),
        "acl": "\n".join(f'          <node type="allow" cidr="{caller.address}/32"/>' for caller in known),
        "common": "\n".join(f'            <param name="{name}" value="{value}"/>' for name, value in _SOFIA),
        "groups": "\n".join(_group_extension(group) for group in GROUPS),
        "trunks": "\n".join(_trunk_extension(caller, settings) for caller in net.trunks),
        "texts": "\n".join(_text_extension(phone) for phone in net.phones),
        "text_sources": "|".join(str(caller.address).replace(".", "[.]") for caller in net.trunks),
        "users": "\n".join(
            f'      <user id="{user}"><params><param name="password" value="{password}"/></params>'
            f'<variables><variable name="user_context" value="{context}"/></variables></user>'
            for user, password, context in users
        ),
    }
    text = _Asterisk((_ETC / "freeswitch" / "freeswitch.xml").read_text(encoding="utf-8")).substitute(values)
    (folder / "freeswitch.xml").write_text(text, encoding="utf-8")
    return folder


def _group_extension(group: Group) -> str:
    phones = ",".join(f"user/{number}@lab" for number in members(group.number))
    return f"""\
      <extension name="{group.name}">
        <condition field="destination_number" expression="^{group.number}$">
          <action application="set" data="hangup_after_bridge=true"/>
          <action application="set" data="call_timeout=45"/>
          <action application="bridge" data="{phones}"/>
        </condition>
      </extension>"""


def _trunk_extension(caller: Caller, settings: Settings) -> str:
    """The extension of a user's dialplan; a trunk is known by its address, a gateway by its registration."""
    trunk = settings.trunk(caller.name)
    field, value = "network_addr", str(caller.address).replace(".", "[.]")
    if caller.registers_at:
        field, value = "${user_name}", f"{caller.name}(-[0-9a-z]+)?"
    return f"""\
      <extension name="from-{caller.name}">
        <condition field="{field}" expression="^{value}$"/>
        <condition field="destination_number" expression="^(\\d{{2,20}})$">
          <action application="set" data="pbxguard_trunk={caller.name}"/>
          <action application="set" data="pbxguard_fail={trunk.fail if trunk else "open"}"/>
          <action application="execute_extension" data="screen XML pbxguard"/>
          <action application="transfer" data="$1 XML subscribers"/>
        </condition>
      </extension>"""


def _text_extension(phone: Phone) -> str:
    return f"""\
      <extension name="{phone.name}">
        <condition field="to_user" expression="^{phone.number}$">
          <action application="set" data="to=access/{phone.number}@lab"/>
        </condition>
      </extension>"""


def _trunk_endpoint(caller: Caller, passwords: Secrets) -> str:
    name = caller.name
    if caller.registers_at:
        accounts = account_names(name)
        return "\n".join(_account(account, passwords.goip, f"from-{name}", "texts") for account in accounts)
    return (
        f"[{name}](trunk)\ncontext = from-{name}\n"
        f"[{name}]\ntype = identify\nendpoint = {name}\nmatch = {caller.address}\n"
    )


def _phone_endpoint(phone: Phone, passwords: Secrets) -> str:
    number = phone.number
    # The contact of a telephone that was replaced, or restarted on another port, must not ring: the newest counts.
    return (
        f"[{number}](phone)\nauth = {number}\naors = {number}\ncallerid = <{number}>\n"
        f"[{number}]\ntype = auth\nauth_type = digest\nusername = {number}\n"
        f"password = {passwords.phones[number]}\n"
        f"[{number}]\ntype = aor\nmax_contacts = 1\nremove_existing = yes\nminimum_expiration = 10\n"
    )


def _trunk_context(caller: Caller, settings: Settings) -> str:
    """The three lines of a user's dialplan, behind one that has the call's tag in the CDR."""
    trunk = settings.trunk(caller.name)
    fail = trunk.fail if trunk else "open"
    return f"[from-{caller.name}]\n" + "".join(
        f"exten => {pattern},1,Gosub(tagged,s,1)\n"
        f" same => n,Gosub(pbxguard,screen,1({caller.name},{fail}))\n"
        " same => n,Goto(subscribers,${EXTEN},1)\n"
        # Digits only: what is screened is what is dialled.
        for pattern in ("_1XXXXXXXXXX", "_1XX")
    )


def _caller(folder: Path, caller: Caller, passwords: Secrets, net: Topology) -> Path:
    gateways = [other for other in net.callers if other.gateway is not None]
    more = ""
    if caller.name == MOBILE:
        more = "\n".join(_gsm_side(each) for each in gateways)
    else:
        more = "\n".join(
            _account(account, passwords.goip, "from-gateway")
            for each in gateways
            if each.registers_at == caller.name
            for account in account_names(each.name)
        ) + "\n".join(_trunk_contact(each) for each in gateways if each.registers_at == caller.name)
    values = {
        "rtp_first": "16000",
        "rtp_last": "16199",
        "ami": "yes",
        "secret": passwords.ami,
        "user_agent": caller.user_agent,
        "pbx_address": str(net.pbx_carrier),
        "more": more,
        "sims": "\n".join(
            f"exten => _{sim_numbers(each.bank)}XXX,1,Dial(PJSIP/${{EXTEN}}@gsm-{each.name},60)" for each in gateways
        ),
    }
    kinds = {MOBILE: ("mobile",), "overseas": ("overseas",)}
    return render(folder, ("carrier", *kinds.get(caller.name, ())), values)


def _gsm_side(gateway: Caller) -> str:
    """The mobile network's end of a gateway's GSM legs."""
    return (
        f"[gsm-{gateway.name}]\ntype = endpoint\ncontext = from-sim\ndisallow = all\nallow = gsm\n"
        f"direct_media = no\nsuppress_q850_reason_headers = yes\naors = gsm-{gateway.name}\n"
        f"[gsm-{gateway.name}]\ntype = aor\ncontact = sip:{gateway.address}:5060\n"
        f"[gsm-{gateway.name}]\ntype = identify\nendpoint = gsm-{gateway.name}\nmatch = {gateway.address}\n"
    )


def _account(name: str, password: str, context: str, texts: str = "none") -> str:
    """An account that a gateway registers at."""
    return (
        f"[{name}]\ntype = endpoint\ncontext = {context}\nmessage_context = {texts}\n"
        "disallow = all\nallow = alaw,ulaw\ndirect_media = no\n"
        f"rtp_symmetric = yes\nsuppress_q850_reason_headers = yes\nauth = {name}\naors = {name}\n"
        "identify_by = auth_username,username\n"
        f"[{name}]\ntype = auth\nauth_type = digest\nusername = {name}\npassword = {password}\n"
        f"[{name}]\ntype = aor\nmax_contacts = 1\nremove_existing = yes\nminimum_expiration = 10\n"
    )


def _trunk_contact(gateway: Caller) -> str:
    """For a gateway in trunk mode, which may have no account."""
    name = f"{gateway.name}-trunk"
    return (
        f"[{name}]\ntype = endpoint\ncontext = none\ndisallow = all\nallow = alaw,ulaw\ndirect_media = no\n"
        f"suppress_q850_reason_headers = yes\naors = {name}\n"
        f"[{name}]\ntype = aor\ncontact = sip:{gateway.address}:5060\n"
    )


def gateway(folder: Path, caller: Caller, plan: GatewayPlan, passwords: Secrets, net: Topology) -> Path:
    """Write the folder of a GOIP gateway with these settings."""
    image = plan.image
    caller_id = plan.caller_id or image.caller_id.value
    dtmf = {"inband": "inband", "rfc4733": "rfc4733", "info": "info"}[plan.dtmf or image.dtmf.value]
    registrar = net.pbx_carrier if caller.registers_at == "pbx" else net.caller(caller.registers_at).address
    accounts = plan.accounts(caller.name)
    progress = {180: " same => n,Ringing()", 183: " same => n,Progress()"}
    values = {
        "rtp_first": "16000",
        "rtp_last": "16199",
        "ami": "yes",
        "secret": passwords.ami,
        "user_agent": image.user_agent.value,
        "mobile_address": str(net.caller(MOBILE).address),
        "registrar": str(registrar),
        "own_address": str(caller.address),
        "codecs": ",".join(image.codecs.value),
        "dtmf": dtmf,
        "rtp_timeout": str(image.rtp_timeout_s.value if plan.rtp_timeout_s is None else plan.rtp_timeout_s),
        "sdp_session": image.sdp_session.value,
        "sdp_owner": image.sdp_origin_user.value,
        "send_rpid": "yes" if caller_id is CallerId.RPID else "no",
        "send_pai": "yes" if caller_id is CallerId.PAI else "no",
        "options_s": str(image.options_s.value),
        "progress": "\n".join(progress[status] for status in image.progress.value),
        "dialable": CHARACTERS,
        "who": "id=${UNIQUEID}&channel=${URIENCODE(${CHANNEL(name)})}",
        "texts": "\n".join(f"[texts-{account}]\ninclude => texts" for account in accounts or (caller.name,)),
        "accounts": "\n".join(
            _line_account(account, passwords.goip, plan, caller_id, str(registrar), registers=account in accounts)
            for account in accounts or (caller.name,)
        ),
    }
    return render(folder, ("goip",), values)


def _line_account(
    name: str, password: str, plan: GatewayPlan, caller_id: CallerId, registrar: str, *, registers: bool
) -> str:
    # With the GSM caller as SIP caller, From is theirs; else it is the account.
    own = "" if caller_id is CallerId.FROM else f"from_user = {name}\n"
    found = (
        f"[{name}](sip)\noutbound_auth = {name}\nset_var = GOIP_ENDPOINT={name}\n{own}"
        f"message_context = texts-{name}\n"
        f"[{name}]\ntype = auth\nauth_type = digest\nusername = {name}\npassword = {password}\n"
    )
    if not registers:
        # Trunk mode: whoever sends an INVITE is asked for by its address.
        return found + f"[anonymous](sip)\nset_var = GOIP_ENDPOINT=\nmessage_context = texts-{name}\n"
    return found + (
        f"[{name}]\ntype = registration\noutbound_auth = {name}\nserver_uri = sip:{registrar}\n"
        f"client_uri = sip:{name}@{registrar}\ncontact_user = {name}\nretry_interval = 5\n"
        "max_random_initial_delay = 0\nauth_rejection_permanent = no\nforbidden_retry_interval = 5\n"
        "fatal_retry_interval = 5\nmax_retries = 100000\n"
        f"expiration = {plan.register_s or plan.image.register_s.value or 3600}\nline = yes\nendpoint = {name}\n"
    )


def softphone_config(address: str, *, port: int = 5060, rtp: int = 16000, calls: int = 1, patience: int = 60) -> str:
    """Baresip's configuration without sound card and display: it answers, says its marker, and is busy in a call.

    Args:
        address: Where it listens.
        port: For SIP.
        rtp: First of a hundred ports.
        calls: At how many calls it is busy, 0: never.
        patience: Seconds after which it gives up ringing, 0: never.
    """
    # Its ringback tone would be played where the call is. Up to 2.0 a player that is stopped before its thread has
    # begun goes on (baresip #1727): a call answered at once had two, each with every other packet of what was heard.
    return f"""\
sip_listen {address}:{port}
call_local_timeout {patience}
call_max_calls {calls}
audio_source aufile,/var/lib/pbxguard/markers/callee.wav
audio_player aufile,/tmp/heard.wav
audio_alert aufile,/dev/null
ringback_disabled yes
rtp_ports {rtp}-{rtp + 99}
module_path /usr/lib/baresip/modules
module g711.so
module aufile.so
module_app account.so
module_app menu.so
"""


def _telephones(folder: Path, phones: Sequence[Phone], passwords: Secrets, net: Topology) -> Path:
    """What the container of these telephones has at /etc/telephones: a folder for each program.

    Several at one address have ports of their own, and whoever is busy has a baresip for itself: it is in a call.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shared = any(phone.box for phone in phones)
    busy = [phone for phone in phones if phone.behaviour == "busy"]
    wanted = {
        "baresip": [phone for phone in phones if phone.program == "baresip" and phone not in busy],
        "baresip-busy": busy,
        "twinkle": [phone for phone in phones if phone.program == "twinkle"],
    }
    for name, ours in wanted.items():
        if not ours:
            shutil.rmtree(folder / name, ignore_errors=True)  # of an older lab
            continue
        address = str(ours[0].address)
        (folder / name).mkdir(exist_ok=True)
        if name == "twinkle":
            _twinkle(folder / name, ours, passwords, net, port=topology.SIP_PORT + 4 if shared else topology.SIP_PORT)
        elif name == "baresip":
            config = softphone_config(address, calls=0, patience=0) if shared else softphone_config(address)
            _baresip(folder / name, ours, passwords, net, config)
        else:
            config = softphone_config(address, port=topology.SIP_PORT + 2, rtp=16400)
            _baresip(folder / name, ours, passwords, net, config)
            # It calls one that never answers, so it is busy for ever, with no sound on the wire.
            patient = next(phone for phone in phones if phone.behaviour == "rings")
            (folder / name / "dials").write_text(f"sip:{patient.number}@{address}:5060")
    return folder


def _baresip(folder: Path, phones: Sequence[Phone], passwords: Secrets, net: Topology, config: str) -> None:
    (folder / "config").write_text(config)
    (folder / "accounts").write_text(
        "".join(
            f"<sip:{phone.number}@{net.pbx_access};transport={phone.transport}>;"
            f"auth_pass={passwords.phones[phone.number]};"
            f"answermode={'auto' if phone.behaviour == 'answers' else 'manual'};regint=10;audio_codecs=PCMA/8000/1\n"
            for phone in phones
        )
    )
    (folder / "contacts").write_text("")


def _twinkle(folder: Path, phones: Sequence[Phone], passwords: Secrets, net: Topology, port: int) -> None:
    """Twinkle's settings, a profile for each telephone, and the scripts that say what becomes of a call.

    ``turn`` says in which seconds it may start: of as many as Twinkles are at the PBX, in one of its own.
    """
    twinkles = list(dict.fromkeys(phone.container for phone in net.phones if phone.program == "twinkle"))
    (folder / "turn").write_text(f"{twinkles.index(phones[0].container)} {len(twinkles)}\n")
    (folder / "twinkle.sys").write_text(
        "".join(f"start_user_profile={phone.number}\n" for phone in phones) + f"sip_port={port}\nrtp_port=16200\n"
        # The image's sound card, see docker/softphone/asound.conf
        "dev_mic=alsa:microphone\ndev_speaker=alsa:speaker\ndev_ringtone=alsa:null\nvalidate_audio_dev=no\n"
        "play_ringtone=no\nplay_ringback=no\ncall_waiting=no\nlog_show_sip=no\nlog_show_debug=no\n"
    )
    for phone in phones:
        (folder / f"{phone.number}.cfg").write_text(
            f"user_name={phone.number}\nuser_domain={net.pbx_access}\nregistrar={net.pbx_access}\n"
            f"auth_name={phone.number}\nauth_pass={passwords.phones[phone.number]}\n"
            f"registration_time=10\nregister_at_startup=yes\npres_publish_startup=no\n"
            f"sip_transport={phone.transport}\ncodecs=g711a\next_100rel=disabled\n"
            f"script_incoming_call=/bin/sh /etc/telephones/twinkle/{phone.behaviour}.sh\n"
        )
        action = "autoanswer" if phone.behaviour == "answers" else "reject"
        (folder / f"{phone.behaviour}.sh").write_text(f"echo action={action}\necho end\n")
