"""A mail server that tells what it took: its port first, then one JSON object a line for each mail.

Arguments: `starttls`, `tls` or `none`; PEM files of certificate and key; how many mails it refuses for now before it takes one.
"""

import asyncio
import json
import ssl
import sys

from aiosmtpd.smtp import SMTP, AuthResult

safety, certificate, key, refusals = sys.argv[1:5]


class Handler:
    refusals = int(refusals)

    async def handle_DATA(self, server, session, envelope):
        if Handler.refusals > 0:
            Handler.refusals -= 1
            return "451 later, please"
        told = {
            "from": envelope.mail_from,
            "to": envelope.rcpt_tos,
            "text": envelope.content.decode(),
            "tls": session.ssl is not None or safety == "tls",
            "login": session.auth_data,
        }
        print(json.dumps(told), flush=True)
        return "250 taken"


def authenticate(server, session, envelope, mechanism, data):
    right = data.login == b"portcullis" and data.password == b"hush"
    return AuthResult(success=right, auth_data=data.login.decode() if right else None)


async def main():
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)

    def connection():
        is_required = safety != "none"
        return SMTP(
            Handler(),
            hostname="mail.test",
            tls_context=context if safety == "starttls" else None,
            require_starttls=safety == "starttls",
            authenticator=authenticate,
            auth_required=is_required,
            auth_require_tls=safety == "starttls",
        )

    wrapped = context if safety == "tls" else None
    server = await asyncio.get_running_loop().create_server(connection, "127.0.0.1", 0, ssl=wrapped)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


asyncio.run(main())
