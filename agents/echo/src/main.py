import json
import sys

payload = json.load(sys.stdin)
print(json.dumps({"text": payload["text"]}))
