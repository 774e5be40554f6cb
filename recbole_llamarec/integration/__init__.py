"""All that touches RecBole 1.2.1's internals; nothing on disk is patched.

``before_import`` makes RecBole importable and therefore runs before any other module of this
package can import RecBole.
"""

from recbole_llamarec.integration import before_import

before_import.install()
